"""`compat="official"`: the published computation, reproduced from its vectors and from a plain transcription of it;
released checkpoints read, without running anything that they hold, and written."""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from omniloom.models.tokenizer import export_official, load_official
from omniloom.models.tokenizer.checkpoint import read_checkpoint
from omniloom.models.tokenizer.config import TokenizerConfig
from omniloom.models.tokenizer.official.blocks import FeedForward, PositionBias, alibi_slopes
from omniloom.models.tokenizer.official.model import OfficialCodebook
from omniloom.models.tokenizer.omni import OmniTokenizer
from omniloom.models.tokenizer.quantizers.config import FSQConfig, VQConfig
from tests.benchmarks.published import PublishedTokenizer, alibi, published_args

ORACLE = Path(__file__).resolve().parents[3] / "shared" / "oracle"
TOLERANCE = 1e-4
TINY = {
    "embedding_dim": 32, "heads": 4, "dim_head": 8, "patch_size": 4, "temporal_patch_size": 4, "temporal_depth": 2,
    "twod_window_size": 2, "n_codes": 64, "codebook_dim": 4,
}  # fmt: skip
needs_oracle = pytest.mark.skipif(not ORACLE.is_dir(), reason=f"no reference vectors in {ORACLE}")


def oracle(name: str) -> dict[str, torch.Tensor]:
    return torch.load(ORACLE / f"{name}.io.pt", weights_only=True)


def published(path: str = "sdpa", **changes) -> tuple[PublishedTokenizer, argparse.Namespace]:
    """A small transcription with perturbed weights, so that those that start constant matter, and its arguments."""
    args = published_args(**{**TINY, **changes})
    torch.manual_seed(3)
    model = PublishedTokenizer(args, path).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, argparse.Namespace(**vars(args))


def write(path: Path, model: PublishedTokenizer, args: argparse.Namespace, **more) -> Path:
    content = {"state_dict": model.state_dict(), "hyper_parameters": {"args": args}, **more}
    torch.save(content, path)
    return path


def same_codes(model: OmniTokenizer, prequant: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Codes are equal, or both are within the tolerance of the nearest."""
    latents = F.normalize(prequant.movedim(1, -1), dim=-1)
    distances = (latents.unsqueeze(-2) - model.codebook.embeddings).square().sum(-1)
    picked = [distances.gather(-1, codes.unsqueeze(-1)).squeeze(-1) for codes in (ours, theirs)]
    assert float((picked[0] - picked[1]).abs().max()) < TOLERANCE
    assert float((ours == theirs).float().mean()) > 0.99


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@needs_oracle
@pytest.mark.parametrize("kind", ["image", "video"])
@torch.no_grad()
def test_published_vectors_of_the_vq_model(kind):
    model, vectors = load_official(ORACLE / "small.ckpt"), oracle("small")
    encoded = model.encode(vectors[kind])
    close(encoded.prequant, vectors[f"{kind}_prequant"])
    same_codes(model, vectors[f"{kind}_prequant"], encoded.codes, vectors[f"{kind}_tokens"])
    is_video = kind == "video"
    close(model.decode(vectors[f"{kind}_tokens"], is_video=is_video), vectors[f"{kind}_recon"])
    close(model.decode(vectors[f"{kind}_embeddings"], is_video=is_video), vectors[f"{kind}_recon"])
    close(model(vectors[kind])[0], vectors[f"{kind}_recon"])


@needs_oracle
@pytest.mark.parametrize("kind", ["image", "video"])
@torch.no_grad()
def test_published_vectors_of_the_kl_model(kind):
    model, vectors = load_official(ORACLE / "small_vae.ckpt"), oracle("small_vae")
    encoded = model.encode(vectors[kind])
    close(encoded.prequant, vectors[f"{kind}_prequant"])
    mean, log_variance = encoded.prequant.chunk(2, dim=1)
    close(encoded.latents, mean, 0.0)
    assert encoded.codes is None
    torch.manual_seed(7)
    latents = mean + (0.5 * log_variance.clamp(-30, 20)).exp() * torch.randn(mean.shape)
    given = vectors[f"{kind}_latent_seed7"]  # (1, 8, h, w) of the image
    close(latents.reshape(given.shape), given)
    close(model.decode(given, is_video=kind == "video"), vectors[f"{kind}_recon"])
    close(model.decode(latents=latents, is_video=kind == "video"), vectors[f"{kind}_recon"])


@needs_oracle
@pytest.mark.parametrize("name", ["small", "small_vae"])
@torch.no_grad()
def test_the_transcription_passes_the_published_vectors(name):
    state, args = read_checkpoint(ORACLE / f"{name}.ckpt")
    args.causal_in_peg, args.causal_in_temporal_transformer = args.casual_in_peg, args.casual_in_temporal_transformer
    model = PublishedTokenizer(args).eval()
    wanted = {key: value for key, value in state.items() if "discriminator" not in key}
    model.load_state_dict(wanted)
    for kind in ("image", "video"):
        vectors = oracle(name)
        close(model.prequant(vectors[kind]), vectors[f"{kind}_prequant"])
        tokens = vectors.get(f"{kind}_tokens", vectors.get(f"{kind}_latent_seed7"))
        if name == "small":
            assert torch.equal(model.encode(vectors[kind]), tokens)
        elif kind == "image":
            tokens = tokens.unsqueeze(2)
        close(model.decode(tokens).reshape(vectors[f"{kind}_recon"].shape), vectors[f"{kind}_recon"])


@pytest.mark.parametrize("use_vae", [False, True])
@pytest.mark.parametrize("path", ["sdpa", "einsum"])
@pytest.mark.parametrize("positions", ["rope", "rel"])
@torch.no_grad()
def test_agrees_with_the_transcription(tmp_path, positions, path, use_vae):
    source, args = published(path, spatial_pos=positions, use_vae=use_vae)
    model = load_official(write(tmp_path / "p.ckpt", source, args), rel_bias=path)
    for shape in ((2, 3, 32, 32), (2, 3, 17, 32, 32), (1, 3, 5, 16, 16)):
        pixels = torch.rand(shape) - 0.5
        encoded = model.encode(pixels)
        prequant = source.prequant(pixels)
        close(encoded.prequant, prequant)
        tokens = source.encode(pixels)
        if not use_vae:
            same_codes(model, prequant, encoded.codes, tokens)
        close(model.decode(tokens, is_video=True), source.decode(tokens))


@pytest.mark.parametrize("changes", [{"causal_in_peg": False}, {"causal_in_temporal_transformer": False},
                                     {"heads": 6, "dim_head": 8, "embedding_dim": 48, "ff_mult": 3.0}])  # fmt: skip
@torch.no_grad()
def test_agrees_with_the_transcription_for_other_arguments(tmp_path, changes):
    source, args = published(**changes)
    model = load_official(write(tmp_path / "p.ckpt", source, args))
    for frames in (1, 5, 9):
        pixels = torch.rand(2, 3, frames, 16, 16) - 0.5
        close(model.encode(pixels).prequant, source.prequant(pixels))


@pytest.mark.parametrize(("positions", "path", "grid"), [("rope", "sdpa", (3, 5)), ("rel", "sdpa", (3, 5)),
                                                         ("rel", "einsum", (2, 8))])  # fmt: skip
@torch.no_grad()
def test_decodes_any_grid_that_the_published_code_decodes(tmp_path, positions, path, grid):
    source, args = published(path, spatial_pos=positions)
    model = load_official(write(tmp_path / "p.ckpt", source, args), rel_bias=path)
    codes = torch.randint(64, (2, 3, *grid))
    close(model.decode(codes, is_video=True), source.decode(codes))
    if path == "einsum":
        with pytest.raises(ValueError, match="square number of places, got 15"):
            model.decode(torch.randint(64, (1, 1, 3, 5)))


@torch.no_grad()
def test_sizes_that_the_published_encoder_cannot_take_are_refused(tmp_path):
    source, args = published()
    model = load_official(write(tmp_path / "p.ckpt", source, args))
    with pytest.raises(ValueError, match="square frames, got 16x32"):
        model.encode(torch.zeros(1, 3, 16, 32))
    with pytest.raises(ValueError, match="multiple of 2, got 3x3"):
        model.encode(torch.zeros(1, 3, 12, 12))
    with pytest.raises(ValueError, match="an image has one latent frame, got 2"):
        model.decode(torch.zeros(1, 2, 4, 4, dtype=torch.int64), is_video=False)


def test_alibi_slopes_of_a_power_of_two():
    distance_one = -alibi(2, 8, torch.device("cpu"))[:, 0, 1]
    torch.testing.assert_close(alibi_slopes(8), distance_one)
    torch.testing.assert_close(alibi_slopes(6), torch.tensor([0.25, 0.0625, 2**-6, 2**-8, 0.5, 0.125]))


@torch.no_grad()
def test_kept_position_bias_follows_its_weights():
    bias = PositionBias(8, 2).eval()
    first = bias(4)
    assert torch.equal(bias(4), first)
    bias.net[2].bias.add_(1.0)
    torch.testing.assert_close(bias(4), first + 1.0)
    bias.train()
    bias.net[2].bias.data.sub_(1.0)  # as optimizers write
    torch.testing.assert_close(bias.eval()(4), first)


@pytest.mark.parametrize("use_vae", [False, True])
@pytest.mark.parametrize("spelling", ["causal", "casual"])
@torch.no_grad()
def test_export_restores_the_file(tmp_path, spelling, use_vae):
    source, args = published("einsum", spatial_pos="rel", use_vae=use_vae)
    args.l1_weight = 4.0
    if spelling == "casual":
        for name in ("causal_in_peg", "causal_in_temporal_transformer"):
            setattr(args, name.replace("causal", "casual"), getattr(args, name))
            delattr(args, name)
    first = load_official(write(tmp_path / "first.ckpt", source, args), rel_bias="einsum")
    export_official(first, tmp_path / "second.ckpt")
    second = load_official(tmp_path / "second.ckpt", rel_bias="einsum")
    pixels = torch.rand(1, 3, 5, 16, 16) - 0.5
    assert torch.equal(first(pixels)[0], second(pixels)[0])
    state, exported = read_checkpoint(tmp_path / "second.ckpt")
    assert exported.casual_in_peg and exported.l1_weight == 4.0 and not hasattr(exported, "causal_in_peg")
    wanted = source.state_dict()
    assert state.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if not (use_vae and name.startswith("codebook.")):  # a KL model has no use for it
            assert torch.equal(state[name], tensor), name


@torch.no_grad()
def test_export_of_a_model_made_here(tmp_path):
    model = OmniTokenizer(tiny_config()).eval()
    export_official(model, tmp_path / "x.ckpt")
    again = load_official(tmp_path / "x.ckpt")
    pixels = torch.rand(1, 3, 16, 16) - 0.5
    assert torch.equal(model(pixels)[0], again(pixels)[0])
    state, args = read_checkpoint(tmp_path / "x.ckpt")
    args.causal_in_peg, args.causal_in_temporal_transformer = args.casual_in_peg, args.casual_in_temporal_transformer
    source = PublishedTokenizer(args).eval()
    source.load_state_dict(state)
    close(source.prequant(pixels), model.encode(pixels).prequant)
    with pytest.raises(ValueError, match="official"):
        export_official(OmniTokenizer(TokenizerConfig(width=16, heads=2, head_dim=8)), tmp_path / "y.ckpt")


def tiny_config(**changes) -> TokenizerConfig:
    quantizer = VQConfig(codebook_size=64, latent_dim=4)
    shape = {"patch_size": 4, "width": 32, "heads": 4, "head_dim": 8, "temporal_layers": 1, "window": 2}
    return TokenizerConfig(**{"compat": "official", **shape, "quantizer": quantizer, **changes})


class Touch:
    """Unpickled by an open unpickler, it creates a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({self.path!r}, 'w').close()",))


class Callback:
    """Stands for what Lightning keeps beside the weights; its module is unknown to the reader."""

    def __init__(self) -> None:
        self.state = {"best": 1.0, "when": [1, 2]}


def test_what_a_checkpoint_names_is_not_run(tmp_path):
    source, args = published()
    touched = tmp_path / "touched"
    unrelated = {"callbacks": {Callback: Callback()}, "optimizer_states": [{"a": Path("x")}]}
    path = write(tmp_path / "p.ckpt", source, args, evil=Touch(str(touched)), **unrelated)
    model = load_official(path)
    assert not touched.exists() and model.num_params > 0
    args.patch_size = Touch(str(touched))
    with pytest.raises(ValueError, match=r"p\.ckpt: args: .*Placeholder"):
        load_official(write(tmp_path / "p.ckpt", source, args))
    assert not touched.exists()
    torch.load(path, weights_only=False)
    assert touched.exists()  # the file was hostile indeed


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        load_official(tmp_path / "none.ckpt")
    for name, content in (("empty.ckpt", b""), ("text.ckpt", b"hello"), ("cut.ckpt", None)):
        if content is None:
            source, args = published()
            content = write(tmp_path / name, source, args).read_bytes()[:-200]
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            load_official(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as archive:
        archive.writestr("a/data.pkl", b"not a pickle")
    with pytest.raises(ValueError, match=r"zip\.ckpt: unreadable"):
        load_official(tmp_path / "zip.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match=r"list\.ckpt: state_dict"):
        load_official(tmp_path / "list.ckpt")


def test_a_missing_or_wrong_key_is_named(tmp_path):
    source, args = published()
    path = tmp_path / "p.ckpt"
    key = "decoder.dec_spatial_transformer.layers.1.3.1.weight"
    for change, message in ((None, "missing"), (torch.zeros(2, 2), r"expected the shape \(.*got \(2, 2\)"),
                            ("text", "expected a tensor, got str")):  # fmt: skip
        state = {**source.state_dict(), key: change}
        if change is None:
            del state[key]
        torch.save({"state_dict": state, "hyper_parameters": {"args": args}}, path)
        with pytest.raises(ValueError, match=rf"p\.ckpt: state_dict\.{key}: {message}"):
            load_official(path)
    torch.save({"state_dict": source.state_dict()}, path)
    with pytest.raises(ValueError, match=r"p\.ckpt: hyper_parameters\.args"):
        load_official(path)
    for name, value in (("patch_embed", "cnn"), ("gen_upscale", 2), ("l2_code", False), ("spatial_pos", "none"),
                        ("dec_block", "tn"), ("dim_head", "wide")):  # fmt: skip
        with pytest.raises(ValueError, match=r"p\.ckpt: args"):
            load_official(write(path, source, argparse.Namespace(**{**vars(args), name: value})))
    del args.embedding_dim
    with pytest.raises(ValueError, match=r"p\.ckpt: args\.embedding_dim: missing"):
        load_official(write(path, source, args))
    with pytest.raises(ValueError, match="rel_bias"):
        load_official(write(path, *published()), rel_bias="flash")


def test_trains_and_keeps_its_padding_and_codebook():
    torch.manual_seed(0)
    model = OmniTokenizer(tiny_config(mlp_width=21)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pixels = torch.rand(2, 3, 5, 16, 16) - 0.5
    losses = []
    for step in range(12):
        model.set_activation_checkpointing(step % 2 == 1)
        recon, encoded = model(pixels, update_codebook=True)
        loss = (recon - pixels).abs().mean() + encoded.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    layers = [module for module in model.modules() if isinstance(module, FeedForward)]
    assert layers and all(layer.padded == 32 and layer.inner == 21 for layer in layers)
    for layer in layers:
        assert not layer.up.weight.unflatten(0, (2, 32))[:, 21:].any() and not layer.down.weight[:, 21:].any()
    resumed = OmniTokenizer(tiny_config(mlp_width=21)).train()
    resumed.load_state_dict(model.state_dict())
    resumed.encode(pixels, update_codebook=True)
    moved = (resumed.codebook.embeddings - model.codebook.embeddings).abs().max()
    assert float(moved) < 0.2  # a step of the averages, not a new codebook
    model.eval()
    before = model.encode(pixels).codes
    resumed.load_state_dict(model.state_dict())
    assert torch.equal(resumed.eval().encode(pixels).codes, before)


def test_counts_the_published_parameters():
    with torch.device("meta"):
        source = PublishedTokenizer(published_args())
    wanted = sum(parameter.numel() for parameter in source.parameters())
    assert wanted == pytest.approx(53.7e6, rel=1e-3)
    model = OmniTokenizer(TokenizerConfig(compat="official"))
    assert model.num_params == wanted + 8192 * 8


@needs_oracle
@torch.no_grad()
def test_bf16_stays_near_fp32():
    model, vectors = load_official(ORACLE / "small.ckpt").to(torch.bfloat16), oracle("small")
    for kind in ("image", "video"):
        prequant = model.encode(vectors[kind]).prequant
        wanted = vectors[f"{kind}_prequant"]
        assert float((prequant - wanted).norm() / wanted.norm()) < 0.05
        recon = model.decode(vectors[f"{kind}_tokens"], is_video=kind == "video").float()
        assert float((recon - vectors[f"{kind}_recon"]).norm() / vectors[f"{kind}_recon"].norm()) < 0.05


def test_config_of_a_corrected_model_has_no_published_switches():
    switches = {"positions": "rel", "rel_bias": "einsum", "causal_peg": False, "causal_attention": False}
    for name, value in switches.items():
        with pytest.raises(ValueError, match=name):
            TokenizerConfig(**{name: value})
    with pytest.raises(ValueError, match="quantizer"):
        TokenizerConfig(compat="official", quantizer=FSQConfig())


def test_the_package_imports_without_torch():
    code = "import sys, models.tokenizer, models.tokenizer.config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_position_bias_costs_no_memory(tmp_path):
    from tests.benchmarks.tokenizer import peak

    options = argparse.Namespace(size=256, threads=1, device="cpu")
    rope, sdpa, einsum = (
        max(peak("official fp32", scheme, name, 17, options) for name in ("encode", "decode"))
        for scheme in ("rope", "rel sdpa", "rel einsum")
    )
    assert sdpa <= 1.1 * rope and einsum <= 1.1 * rope


def test_the_first_codes_are_latents_of_the_first_batch():
    """As many as there are codes, drawn without repetition; of fewer, copies that a little noise tells apart."""
    many = torch.nn.functional.normalize(torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    codebook = OfficialCodebook(VQConfig(codebook_size=16, latent_dim=4))
    codebook._start(torch.cat((many, torch.full((1, 4), torch.nan))))
    nearest = (codebook.embeddings[:, None] - many).norm(dim=-1).min(1)
    assert nearest.values.max() == 0 and len(set(nearest.indices.tolist())) == 16
    assert torch.equal(codebook.z_avg, codebook.embeddings) and codebook.N.tolist() == [1.0] * 16
    kept = codebook.embeddings.clone()
    codebook._start(many.flip(0))  # begun already
    assert torch.equal(codebook.embeddings, kept)
    few = OfficialCodebook(VQConfig(codebook_size=16, latent_dim=4))
    few._start(many[:3])
    nearest = (few.embeddings[:, None] - many[:3]).norm(dim=-1).min(1)
    assert 0 < nearest.values.min() and nearest.values.max() < 0.03
    counts = torch.bincount(nearest.indices, minlength=3)
    assert counts.sum() == 16 and counts.min() >= 4 and counts.max() <= 6
    none = OfficialCodebook(VQConfig(codebook_size=16, latent_dim=4))
    before = none.embeddings.clone()
    none._start(torch.full((5, 4), torch.nan))
    assert torch.equal(none.embeddings, before) and not none.N.any()
