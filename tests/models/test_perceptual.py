"""LPIPS and the style loss: against torchmetrics and closed forms, what they may touch, and what weights they take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from omniloom.models.tokenizer.config import TokenizerConfig
from omniloom.models.tokenizer.losses import TokenizerObjective
from omniloom.models.tokenizer.losses_config import TokenizerLossConfig
from omniloom.models.tokenizer.perceptual import (
    gram_matrix,
    load_perceptual,
    random_frames,
    read_weights,
    style_distance,
    unit_channels,
)
from omniloom.models.tokenizer.quantizers.config import VQConfig

VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
TINY = TokenizerConfig(
    width=16,
    heads=1,
    head_dim=16,
    spatial_layers="t",
    decoder_spatial_layers="t",
    temporal_layers=1,
    quantizer=VQConfig(codebook_size=16, latent_dim=4),
)


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.5


def torchvision_features() -> nn.Sequential:
    """The layers of torchvision's VGG-16, at random weights that keep the features' size."""
    layers, channels = [], 3
    for width in VGG16:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
    network = nn.Sequential(*layers)
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            std = (2.0 / module.weight[0].numel()) ** 0.5
            nn.init.normal_(module.weight, std=std, generator=generator)
            nn.init.normal_(module.bias, std=0.1, generator=generator)
    return network


@pytest.fixture(scope="module")
def vgg() -> dict[str, torch.Tensor]:
    return {f"features.{name}": value for name, value in torchvision_features().state_dict().items()}


@pytest.fixture(scope="module")
def bundled() -> Path:
    """The published LPIPS heads of VGG-16, which torchmetrics ships."""
    import torchmetrics

    return Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "vgg.pth"


@pytest.fixture(scope="module")
def network(vgg, bundled):
    return load_perceptual(vgg, read_weights(bundled))


# ---- values ----


@pytest.mark.parametrize("size", [(32, 32), (40, 25)])
def test_lpips_is_that_of_torchmetrics(network, monkeypatch, size):
    from torchmetrics.functional.image import lpips as reference

    monkeypatch.setattr(reference, "_get_tv_model_features", lambda *_, **__: torchvision_features())
    real, fake = pixels(3, 3, *size), pixels(3, 3, *size, seed=1)
    expected = reference.learned_perceptual_image_patch_similarity(2 * fake, 2 * real, "vgg", reduction="none")
    found = network(fake, real)
    assert found.shape == (3,) and expected.std() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_lpips_of_a_picture_and_itself_is_zero_and_grows_with_noise(network):
    real = F.interpolate(pixels(2, 3, 4, 4), size=32, mode="bilinear")
    noise = pixels(2, 3, 32, 32, seed=1)
    distances = [network(real + scale * noise, real).mean() for scale in (0.0, 0.05, 0.2, 0.8)]
    assert distances[0] == 0.0 and distances == sorted(distances) and distances[1] > 0.0


def test_features_are_the_published_layers(network):
    reference, x = torchvision_features(), pixels(2, 3, 32, 48)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    hidden = (2 * x - shift.view(3, 1, 1)) / scale.view(3, 1, 1)
    relus = {3: 0, 8: 1, 15: 2, 22: 3, 29: 4}  # relu1_2 to relu5_3 in torchvision's numbering
    found = network.features(x)
    for i, layer in enumerate(reference):
        hidden = layer(hidden)
        if i in relus:
            torch.testing.assert_close(found[relus[i]], hidden, rtol=1e-4, atol=1e-4)
    assert [f.shape[1] for f in found] == [64, 128, 256, 512, 512]


@settings(max_examples=20)
@given(channels=st.integers(1, 6), h=st.integers(1, 5), w=st.integers(1, 5), seed=st.integers(0, 99))
def test_gram_matrices_follow_their_definition(channels, h, w, seed):
    features = pixels(2, channels, h, w, seed=seed)
    expected = torch.einsum("bchw,bdhw->bcd", features, features) / (channels * h * w)
    torch.testing.assert_close(gram_matrix(features), expected)
    order = torch.randperm(h * w, generator=torch.Generator().manual_seed(seed))
    shuffled = features.flatten(2)[..., order].view_as(features)  # a style knows no places
    torch.testing.assert_close(style_distance([shuffled], [features]), torch.zeros(2), atol=1e-6, rtol=0)
    other = pixels(2, channels, h, w, seed=seed + 100)
    wanted = (gram_matrix(features) - gram_matrix(other)).flatten(1).square().sum(1)
    torch.testing.assert_close(style_distance([features, other], [other, other]), wanted)


def test_unit_channels_keep_a_gradient_at_zero():
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)
    (unit_channels(features) - 1.0).square().sum().backward()
    assert features.grad.isfinite().all()
    lengths = unit_channels(pixels(2, 5, 3, 3)).square().sum(1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=1e-4, atol=1e-4)


def test_frames_are_drawn_for_each_clip_and_are_the_same_in_both():
    clip = torch.arange(7.0).view(1, 1, 7, 1, 1).expand(64, 3, 7, 2, 2)
    torch.manual_seed(3)
    frames, others = random_frames(clip, clip + 10)
    assert frames.shape == (64, 3, 2, 2) and torch.equal(frames + 10, others)
    assert frames[:, 0, 0, 0].unique().tolist() == list(range(7))
    torch.manual_seed(3)
    assert torch.equal(random_frames(clip)[0], frames)
    image, state = pixels(2, 3, 4, 4), torch.get_rng_state()
    assert random_frames(image)[0] is image and torch.equal(torch.get_rng_state(), state)


# ---- what it is to the model that holds it ----


def objective(network, **loss) -> TokenizerObjective:
    torch.manual_seed(0)
    return TokenizerObjective(TINY, TokenizerLossConfig(**loss), network)


@pytest.mark.parametrize("shape", [(2, 3, 16, 24), (2, 3, 5, 16, 16)])
def test_the_objective_adds_the_weighted_terms(network, shape):
    generator, x = objective(network, perceptual_weight=3.0, style_weight=0.5).eval(), pixels(*shape)
    torch.manual_seed(1)
    with torch.no_grad():
        loss, logs, recon = generator(x)
        plain, _, _ = objective(None).eval()(x)
    assert float(loss - plain) == pytest.approx(3.0 * float(logs["lpips"]) + 0.5 * float(logs["style"]), rel=1e-4)
    torch.manual_seed(1)
    frames, recon_frames = random_frames(x, recon)
    torch.testing.assert_close(logs["lpips"], network(recon_frames, frames).mean())
    assert logs["style"] > 0


def test_it_is_no_part_of_the_trained_model(network):
    generator, bare = objective(network, perceptual_weight=1.0), objective(None)
    assert set(generator.state_dict()) == set(bare.state_dict())
    assert len(list(generator.parameters())) == len(list(bare.parameters()))
    bare.load_state_dict(generator.state_dict())
    before = {name: value.clone() for name, value in network.named_buffers()}
    assert generator.training
    optimizer = torch.optim.AdamW(generator.parameters(), 1e-2)
    loss, _, _ = generator(pixels(2, 3, 16, 16))
    loss.backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    assert objective(network).perceptual is None  # a weight of 0 needs none


def test_training_mode_changes_nothing(network):
    a, b = pixels(2, 3, 16, 16), pixels(2, 3, 16, 16, seed=1)
    assert torch.equal(network.train()(a, b), network.eval()(a, b))


def test_it_moves_with_the_model_and_keeps_its_precision(vgg, bundled):
    small = load_perceptual(vgg, read_weights(bundled))
    before = small.features_0_weight.clone()
    holder = nn.Sequential(nn.Linear(2, 2), small).to(torch.bfloat16)
    assert holder[0].weight.dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in small.buffers())
    assert torch.equal(small.features_0_weight, before)
    holder.to("meta")
    assert all(value.is_meta for value in small.buffers())


def test_the_given_weights_are_copied(vgg, bundled):
    state = {name: value.clone() for name, value in vgg.items()}
    built = load_perceptual(state, read_weights(bundled))
    for value in state.values():
        value.zero_()
    assert built.features_0_weight.abs().sum() > 0


def test_gradients_reach_the_reconstruction_alone(network):
    fake, real = pixels(2, 3, 16, 16).requires_grad_(), pixels(2, 3, 16, 16, seed=1).requires_grad_()
    network(fake, real).sum().backward()
    assert real.grad is None and fake.grad.abs().sum() > 0
    way, step = fake.grad / fake.grad.norm(), 0.02
    with torch.no_grad():
        slope = (network(fake + step * way, real) - network(fake - step * way, real)).sum() / (2 * step)
    assert float(fake.grad.norm()) == pytest.approx(float(slope), rel=0.03)


def test_bf16_follows_float32(network):
    fake, real = pixels(2, 3, 32, 32), F.interpolate(pixels(2, 3, 4, 4, seed=1), size=32, mode="bilinear")
    results = []
    for cast in (False, True):
        x = fake.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
            with torch.no_grad():
                target = network.features(real)
            found = network.features(x)
            lpips, style = network.lpips(found, target), style_distance(found, target)
        (lpips.sum() + style.sum()).backward()
        assert lpips.dtype == style.dtype == torch.float32
        results.append((lpips.detach(), style.detach(), x.grad))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0.02, atol=0)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=0.05, atol=0)
    assert (results[1][2] - results[0][2]).norm() < 0.1 * results[0][2].norm()
    half = network(fake.bfloat16(), real.bfloat16())
    torch.testing.assert_close(half, results[0][0], rtol=0.02, atol=0)


def test_it_sharpens_what_l1_leaves_grey(network):
    """A constant picture against noise: L1 leaves it grey, the feature distance gives it texture."""
    real = pixels(4, 3, 32, 32)
    fake = torch.zeros_like(real).requires_grad_()
    optimizer = torch.optim.Adam([fake], 0.02)
    for _ in range(10):
        optimizer.zero_grad()
        network(fake, real).mean().backward()
        optimizer.step()
    with torch.no_grad():
        assert network(fake, real).mean() < 0.7 * network(torch.zeros_like(real), real).mean()
    assert fake.detach().std() > 0.05


def test_small_pictures_are_named(network):
    with pytest.raises(ValueError, match=r"at least 16x16, got \(1, 3, 15, 16\)"):
        network.features(pixels(1, 3, 15, 16))
    assert network.features(pixels(1, 3, 16, 16))[-1].shape == (1, 512, 1, 1)


# ---- weights ----


def test_a_weight_without_its_network_is_refused(vgg, network):
    with pytest.raises(ValueError, match="TokenizerLossConfig.perceptual_weight: 2.0 needs VGG-16"):
        objective(None, perceptual_weight=2.0)
    with pytest.raises(ValueError, match="TokenizerLossConfig.style_weight: 2.0 needs VGG-16"):
        objective(None, style_weight=2.0)
    headless = load_perceptual(vgg)
    with pytest.raises(ValueError, match="perceptual_weight: 2.0 needs LPIPS heads"):
        objective(headless, perceptual_weight=2.0)
    with pytest.raises(ValueError, match="LPIPS needs its heads"):
        headless(pixels(1, 3, 16, 16), pixels(1, 3, 16, 16))
    generator, x = objective(headless, style_weight=1.0), pixels(2, 3, 16, 16)
    assert "style" in generator(x)[1] and "lpips" not in generator(x)[1]


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_files_round_trip(vgg, bundled, network, tmp_path, suffix):
    heads = {name.replace("model.1.", ""): value for name, value in read_weights(bundled).items()}
    extra = {"classifier.0.weight": torch.zeros(2, 2)}
    paths = [tmp_path / f"{name}.{suffix}" for name in ("vgg", "heads")]
    for path, state in zip(paths, ({**vgg, **extra}, heads), strict=True):
        if suffix == "safetensors":
            save_file(state, path)
        else:
            torch.save(state, path)
    a, b = pixels(2, 3, 16, 16), pixels(2, 3, 16, 16, seed=1)
    assert torch.equal(load_perceptual(*map(read_weights, paths))(a, b), network(a, b))
    assert not load_perceptual(read_weights(paths[0])).has_heads


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("features.10.weight", None, r"vgg\.pth: features\.10\.weight is missing"),
        (
            "features.28.bias",
            torch.zeros(511),
            r"vgg\.pth: features\.28\.bias: expected floats \(512,\), got .*\(511,\)",
        ),
        (
            "features.0.weight",
            torch.zeros(64, 3, 3, 3, dtype=torch.int64),
            "features.0.weight: expected floats .*int64",
        ),
        ("features.0.bias", "text", "features.0.bias: .*got str"),
        ("features.5.bias", torch.full((128,), torch.nan), "features.5.bias: expected finite numbers"),
    ],
)
def test_a_wrong_vgg_is_named(vgg, tmp_path, key, value, message):
    state = {**vgg, key: value}
    if value is None:
        del state[key]
    torch.save(state, tmp_path / "vgg.pth")
    with pytest.raises(ValueError, match=message):
        load_perceptual(read_weights(tmp_path / "vgg.pth"), vgg_source=str(tmp_path / "vgg.pth"))


def test_wrong_heads_are_named(vgg, bundled):
    heads = read_weights(bundled)
    lacking = {name: value for name, value in heads.items() if not name.startswith("lin3")}
    with pytest.raises(ValueError, match="mine: lin3.model.1.weight or lin3.weight is missing"):
        load_perceptual(vgg, lacking, heads_source="mine")
    swapped = {**heads, "lin0.model.1.weight": heads["lin1.model.1.weight"]}
    with pytest.raises(ValueError, match=r"lin0.model.1.weight: expected .*\(1, 64, 1, 1\).*got .*\(1, 128, 1, 1\)"):
        load_perceptual(vgg, swapped)


class Planted:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_files_that_are_no_weights_are_named_and_nothing_in_them_runs(tmp_path):
    for name, content in (("a.pth", b"no weights"), ("b.safetensors", b"no weights"), ("c.pth", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: expected weights"):
            read_weights(tmp_path / name)
    with pytest.raises(ValueError, match="missing.pth: no such file"):
        read_weights(tmp_path / "missing.pth")
    with pytest.raises(ValueError, match="missing.safetensors: no such file"):
        read_weights(tmp_path / "missing.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="list.pth: expected a state dict, got list"):
        read_weights(tmp_path / "list.pth")
    torch.save({"features.0.weight": Planted(tmp_path / "ran")}, tmp_path / "planted.pth")
    with pytest.raises(ValueError, match="planted.pth"):
        read_weights(tmp_path / "planted.pth")
    assert not (tmp_path / "ran").exists()


def test_the_engine_trains_without_a_trace_of_it(process_group, network, tmp_path):
    """Under the real engine: nothing in its weights, its average or its checkpoint; and a step changes the model."""
    from omniloom.infra.training import checkpoint
    from omniloom.infra.training.config import EngineConfig, OptimizerConfig
    from omniloom.infra.training.engine import Engine

    generator = objective(network, perceptual_weight=1.0, style_weight=0.1)
    optimizer, settings = OptimizerConfig(lr=1e-2, warmup_steps=0), EngineConfig(zero_stage=1, ema_decay=0.9)
    engine = Engine(generator, optimizer, settings, 4, 2)
    before = engine.state_dict()
    loss, logs, _ = engine(pixels(2, 3, 16, 16))
    engine.backward(loss)
    engine.step(0)
    assert set(before) == set(objective(None).state_dict()) and "lpips" in logs
    assert not torch.equal(engine.state_dict()["tokenizer.post_vq.weight"], before["tokenizer.post_vq.weight"])
    checkpoint.save(str(tmp_path), 1, {"generator": engine}, {}, keep=1)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size < 4 * sum(value.numel() for value in network.buffers())  # VGG-16 alone has 59 MB


@pytest.mark.slow
def test_zero_three_trains_with_it(tmp_path):
    """ZeRO-3 partitions the tokenizer's weights and leaves the network whole."""
    torch.multiprocessing.spawn(_zero_three, (str(tmp_path / "store"),), nprocs=2)


def _zero_three(rank: int, store: str) -> None:
    import os

    import torch.distributed as dist

    from omniloom.infra.training.config import EngineConfig, OptimizerConfig
    from omniloom.infra.training.engine import Engine

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    state = {f"features.{name}": value for name, value in torchvision_features().state_dict().items()}
    generator = objective(load_perceptual(state), style_weight=0.1)
    engine = Engine(generator, OptimizerConfig(lr=1e-2, warmup_steps=0), EngineConfig(zero_stage=3), 4, 1)
    losses = []
    for step in range(3):
        loss, logs, _ = engine(pixels(1, 3, 16, 16, seed=rank), None, 0.0, False)
        engine.backward(loss)
        engine.step(step)
        losses.append(float(logs["loss"]))
    assert losses[-1] < losses[0]
    assert all(value.numel() for value in engine.module.perceptual.buffers())
    dist.destroy_process_group()
