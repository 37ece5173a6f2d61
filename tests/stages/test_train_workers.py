"""The training stages' workers on one rank: losses fall, and a run that was killed ends with the same weights."""

from __future__ import annotations

import itertools
from pathlib import Path

import corpora
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from omniloom.infra import storage
from omniloom.models.model import OmniLoom
from omniloom.models.unified.batch import collate
from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.objective import UnifiedObjective
from omniloom.stages.checkpoints.tokenizer import load_tokenizer, read_official
from omniloom.stages.data.documents import Documents
from omniloom.stages.data.order import hash_seed
from omniloom.stages.data.planner import Planner
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.reporting import history
from omniloom.stages.tokenizer import stage as train_tokenizer
from omniloom.stages.tokenizer import worker as tokenizer_worker
from omniloom.stages.train import config as unified_settings
from omniloom.stages.train import stage as train_unified
from omniloom.stages.train import worker as unified_worker


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return corpora.ingest(tmp_path_factory.mktemp("corpus") / "ingest")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, visual):
    text, rng = corpora.text_tokenizer(), np.random.default_rng(0)
    train = corpora.token_rows(text, rng, images=30, videos=6, texts=8, documents=6)
    held_out = corpora.token_rows(text, rng, images=6, videos=1, texts=2, documents=0)
    return corpora.pretokenize(
        tmp_path_factory.mktemp("tokens") / "tokens",
        {"train": [train[:20], train[20:]], "validation": [held_out]},
        text,
        visual_digest=visual.digest,
    )


def work(folder: Path) -> dict:
    return {"output": str(folder / "output"), "state": str(folder / "state"), "tracker": corpora.Silent()}


def curve(folder: Path) -> list[dict]:
    """History without what depends on the clock."""
    rows = history.load(str(folder / "output" / "report" / "history.jsonl"))
    return [{name: value for name, value in row.items() if not name.endswith("per_second")} for row in rows]


# ---- the unified model ----


def unified_config(**fields) -> train_unified.Config:
    return train_unified.Config.model_validate(
        {
            "model": {"width": 32, "layers": 2, "heads": 2, "time_dim": 16},
            "packing": {"length": 64, "window_rows": 6},
            "batch_rows": 4,
            "steps": 12,
            "seed": 3,
            "optimizer": {"lr": 5e-3, "warmup_steps": 3},
            "engine": {"zero_stage": 1, "ema_decay": 0.9},
            "workers": {"count": 1, "checkpoint_every": 3, "log_every": 2},
            "validate_every": 6,
            "validation_rows": 2,
            "samples": {"count": 2, "num_steps": 2},
            **fields,
        }
    )


def train_the_model(folder, tokens, visual, progress=None, **fields) -> None:
    unified_worker.train_worker(
        unified_worker.Job(
            unified_config(**fields), tokens, visual, progress=progress or corpora.Silent(), **work(folder)
        )
    )


def trained_plainly(tokens, config: train_unified.Config) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The same training in one loop of torch alone, without engine, loader, cursor or checkpoint: weights and losses.
    Step s takes the next `batch_rows` rows of the windows one after the other, in one pass."""
    held = TokenSet(tokens, "train")
    planner, rows = Planner(held.index, config.packing, config.seed, config.objectives), []
    before = planner.start()
    for number in itertools.count():
        window = planner.window(number, before)
        rows, before = rows + window.rows(), window.after
        if len(rows) >= config.batch_rows * config.steps:
            break
    shape = unified_settings.unified_config(
        config, held.facts["vocab_size"], unified_settings.visual_sizes(held.facts), held.facts["specials"]
    )
    torch.manual_seed(config.seed)
    objective, documents = UnifiedObjective(UnifiedModel(shape), config.diffusion), Documents(held, shape)
    parameters = list(objective.parameters())
    adam = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )
    average, losses = [p.detach().clone() for p in parameters], []
    for step in range(config.steps):
        taken = rows[step * config.batch_rows : (step + 1) * config.batch_rows]
        batch = collate([[documents.segments(placed) for placed in row] for row in taken], config.packing.length, shape)
        loss, _ = objective(batch, [hash_seed(config.seed, step, number) for number in range(len(taken))])
        for group in adam.param_groups:
            group["lr"] = config.optimizer.lr_at(step, config.steps)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        decay = min(config.engine.ema_decay, (1 + step) / (10 + step))
        average = [decay * mean + (1 - decay) * p.detach() for mean, p in zip(average, parameters)]
        losses.append(loss.item())
    names = [name.removeprefix("model.") for name, _ in objective.named_parameters()]
    return dict(zip(names, average, strict=True)), losses


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {
            "engine": {"zero_stage": 2, "ema_decay": 0.0},
            "packing": {"length": 48, "window_rows": 5, "mixture": {"image": 0.6, "text": 0.0}},
            "workers": {"count": 1, "checkpoint_every": 3, "log_every": 5, "accumulate": 2},
        },
    ],
    ids=["ema", "accumulated"],
)
def test_a_killed_training_ends_with_the_same_weights(tmp_path, tokens, visual, fields):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train_the_model(straight, tokens, visual, **fields)
    with pytest.raises(corpora.Killed):  # after the checkpoint at 6
        train_the_model(broken, tokens, visual, corpora.KilledAt(8), **fields)
    assert not (broken / "state" / "metrics.json").exists()
    resumed = corpora.KilledAt(99)
    train_the_model(broken, tokens, visual, resumed, **fields)
    wanted, found = (load_file(folder / "output" / "model" / "unified.safetensors") for folder in (straight, broken))
    plain, losses = trained_plainly(tokens, unified_config(**fields))
    assert set(wanted) == set(found) == set(plain)
    for name, value in wanted.items():
        assert torch.equal(value, found[name]), name
        torch.testing.assert_close(value, plain[name], rtol=2e-3, atol=2e-5, msg=name)
    assert curve(broken) == curve(straight)
    steps = [row["step"] for row in curve(straight) if "loss" in row]
    assert steps == sorted(set(steps)) and steps[-1] == len(losses)
    means = [np.mean(losses[begin:end]) for begin, end in zip([0, *steps], steps)]
    assert [row["loss"] for row in curve(straight) if "loss" in row] == pytest.approx(means, rel=1e-4)
    metrics = [storage.read_json(str(folder / "state" / "metrics.json")) for folder in (straight, broken)]
    for name in ("units", "loss", "validation_visual_loss", "parameters"):
        assert metrics[0][name] == metrics[1][name]


@pytest.mark.slow
def test_compiled_training_is_the_same_training(tmp_path, tokens, visual):
    """Validation and drawing, whose shapes differ, run eagerly in between."""
    for compiled in (False, True):
        train_the_model(
            tmp_path / str(compiled), tokens, visual, engine={"zero_stage": 1, "ema_decay": 0.9, "compile": compiled}
        )
    eager, compiled = (curve(tmp_path / str(c)) for c in (False, True))
    assert [row["step"] for row in eager] == [row["step"] for row in compiled]
    for a, b in zip(eager, compiled):
        assert set(a) == set(b)
        for name in {"loss", "validation_text_loss"} & set(a):
            assert a[name] == pytest.approx(b[name], rel=1e-4), (name, a["step"])


def test_the_model_learns_and_its_output_is_complete(tmp_path, tokens, visual):
    train_the_model(
        tmp_path,
        tokens,
        visual,
        steps=60,
        validate_every=30,
        workers={"count": 1, "log_every": 10, "checkpoint_every": 1000},
    )
    rows = [row for row in curve(tmp_path) if "loss" in row]
    # The latents are noise, of which only the scale can be learnt: v = e - x of variance 1 + 4 falls towards it.
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"] and rows[-1]["text_loss"] < 0.6 * rows[0]["text_loss"]
    assert all(0 <= row["padding"] < 0.3 and row["grad_norm"] > 0 for row in rows)
    validation = [row["validation_text_loss"] for row in curve(tmp_path) if "validation_text_loss" in row]
    assert len(validation) == 2 and validation[1] < validation[0]
    model = OmniLoom.load(tmp_path / "output" / "model")
    images = model.text_to_image(["a red square"], VisualSampling(num_steps=2), seeds=0)
    assert images.shape == (1, 24, 24, 3) and images.dtype == np.uint8
    assert isinstance(model.image_to_text([images[0]], text=TextSampling(max_new_tokens=4))[0], str)
    assert (tmp_path / "output" / "report" / "samples.png").read_bytes().startswith(b"\x89PNG")
    captions = storage.read_json(str(tmp_path / "output" / "report" / "prompts.json"))["captions"]
    assert len(captions) == 2


PICTURES = {"length": 64, "window_rows": 6, "mixture": {"image": 1}}


@pytest.mark.parametrize(
    "fields, losses",
    [
        ({"objectives": {}}, {"text_loss"}),
        ({"packing": {**PICTURES, "caption_first": 0}}, {"text_loss"}),
        ({"packing": {**PICTURES, "caption_first": 1, "caption_loss": False}}, {"visual_loss"}),
        (
            {"packing": {**PICTURES, "caption_first": 1}, "loss": {"task_weights": {"draw": 2.0}}},
            {"text_loss", "visual_loss"},
        ),
    ],
    ids=["text", "describe", "draw", "weighted"],
)
def test_only_what_is_asked_for_has_a_loss(tmp_path, tokens, visual, fields, losses):
    train_the_model(
        tmp_path,
        tokens,
        visual if fields.get("objectives") != {} else None,
        steps=4,
        validate_every=4,
        **{"workers": {"count": 1, "log_every": 1, "peak_tflops": 1.0}, **fields},
    )
    rows = [row for row in curve(tmp_path) if "loss" in row]
    assert {name for row in rows for name in row if name.endswith("_loss") and name[:2] != "va"} == losses
    parts = {"text", "backbone"} | ({"visual"} if fields.get("objectives") != {} else set())
    for row in rows:
        assert row["grad_norm"] ** 2 == pytest.approx(sum(row[f"grad_norm_{part}"] ** 2 for part in parts), rel=1e-4)
        assert 0 < row["model_flops_utilization"] < 1
    [validation] = [row for row in curve(tmp_path) if "validation_text_loss" in row or "validation_visual_loss" in row]
    assert {name.removeprefix("validation_") for name in validation if name.startswith("validation_")} == losses
    model = OmniLoom.load(tmp_path / "output" / "model")
    assert (model.tokenizer is None) == (model.config.unified.representations == ()) == ("visual" not in parts)
    assert len(model.text_to_text(["a red"], TextSampling(max_new_tokens=3))) == 1


def test_task_weights_of_one_change_nothing(tmp_path, tokens, visual):
    alike = dict.fromkeys(("text", "draw", "describe", "document"), 1.0)
    kept = []
    for name, weights in (("plain", {}), ("alike", alike), ("other", {"describe": 0.0, "text": 3.0})):
        train_the_model(tmp_path / name, tokens, visual, steps=4, loss={"task_weights": weights})
        kept.append((curve(tmp_path / name), load_file(tmp_path / name / "output" / "model" / "unified.safetensors")))
    (plain, weights), (alike, same), (other, _) = kept
    assert plain == alike and all(torch.equal(value, same[name]) for name, value in weights.items())
    assert other != plain


def test_a_corpus_without_a_validation_split_trains(tmp_path, visual):
    text = corpora.text_tokenizer()
    rows = corpora.token_rows(text, np.random.default_rng(0), images=6, videos=0, texts=3, documents=0)
    tokens = corpora.pretokenize(tmp_path / "tokens", {"train": [rows]}, text, visual_digest=visual.digest)
    train_the_model(tmp_path / "none", tokens, visual, steps=2)
    assert "validation_text_loss" not in storage.read_json(str(tmp_path / "none" / "state" / "metrics.json"))
    only_text = corpora.pretokenize(
        tmp_path / "text", {"train": [rows], "validation": [rows[-1:]]}, text, visual_digest=visual.digest
    )
    train_the_model(tmp_path / "other", only_text, visual, steps=2, packing={"length": 64, "mixture": {"text": 0.0}})


# ---- the tokenizer ----


def tokenizer_config(quantizer: dict, **fields) -> train_tokenizer.Config:
    return train_tokenizer.Config.model_validate(
        {
            "model": {
                "patch_size": 8,
                "temporal_patch": 4,
                "width": 16,
                "heads": 2,
                "head_dim": 8,
                "spatial_layers": "t",
                "temporal_layers": 1,
                "decoder_spatial_layers": "t",
                "quantizer": quantizer,
            },
            "loss": {"adversarial_start": 4, "adversarial_ramp": 2},
            "discriminator": {"channels": 4, "layers": 1},
            "data": {
                "kinds": ["image", "video"],
                "sizes": [16, 24],
                "frames": 5,
                "image_batch": 4,
                "video_batch": 2,
                "flip": True,
            },
            "steps": 12,
            "seed": 2,
            "optimizer": {"lr": 3e-3, "warmup_steps": 3},
            "engine": {"zero_stage": 1, "ema_decay": 0.9},
            "validate_every": 6,
            "validation_examples": 4,
            "workers": {"count": 1, "checkpoint_every": 3, "log_every": 2},
            **fields,
        }
    )


def train_a_tokenizer(folder, squares, config, progress=None, start_from=None) -> None:
    tokenizer_worker.train_worker(
        tokenizer_worker.Job(
            config,
            config.model,
            squares,
            start_from,
            progress=progress or corpora.Silent(),
            **work(folder),
        )
    )


@pytest.mark.parametrize(
    "quantizer",
    [{"kind": "vq", "codebook_size": 32, "latent_dim": 4, "restart_dead_after": 1}, {"kind": "kl", "latent_dim": 4}],
    ids=["vq", "kl"],
)
def test_a_killed_tokenizer_ends_with_the_same_weights(tmp_path, squares, quantizer):
    """Codebook, averages and what the discriminator did to the decoder included."""
    config, straight, broken = tokenizer_config(quantizer), tmp_path / "straight", tmp_path / "broken"
    train_a_tokenizer(straight, squares, config)
    with pytest.raises(corpora.Killed):
        train_a_tokenizer(broken, squares, config, corpora.KilledAt(8))
    train_a_tokenizer(broken, squares, config)
    wanted, found = (
        load_file(folder / "output" / "tokenizer" / "tokenizer.safetensors") for folder in (straight, broken)
    )
    assert set(wanted) == set(found)
    for name, value in wanted.items():
        assert torch.equal(value, found[name]), name
    assert curve(broken) == curve(straight)
    assert any("image_discriminator_loss" in row for row in curve(straight))


def checkpoint(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """What a training checkpoint holds: weights, buffers, both optimizers, EMA."""
    files = sorted((folder / "state" / "checkpoints" / f"step-{step:08d}").rglob("*.safetensors"))
    assert files
    return {f"{file.parent.name}/{name}": value for file in files for name, value in load_file(file).items()}


def test_a_killed_joint_stage_has_codebook_ema_and_discriminators_bit_for_bit(tmp_path, squares):
    """Stage 2, from stage 1's weights: the checkpoint after the resume equals that of the run that never died."""
    quantizer = {"kind": "vq", "codebook_size": 32, "latent_dim": 4, "restart_dead_after": 1}
    image = tokenizer_config(quantizer, steps=4, data={"kinds": ["image"], "sizes": [24], "image_batch": 8})
    train_a_tokenizer(tmp_path / "image", squares, image)
    start = corpora.seal(tmp_path / "image" / "output", "tokenizer_image", image)
    config, straight, broken = tokenizer_config(quantizer), tmp_path / "straight", tmp_path / "broken"
    train_a_tokenizer(straight, squares, config, start_from=start)
    with pytest.raises(corpora.Killed):
        train_a_tokenizer(broken, squares, config, corpora.KilledAt(8), start_from=start)
    train_a_tokenizer(broken, squares, config, start_from=start)
    wanted, found = checkpoint(straight, 9), checkpoint(broken, 9)
    assert set(wanted) == set(found)
    for part in (
        "codebook.embeddings",
        "codebook.ema_sum",
        "discriminator.image",
        "discriminator.video",
        "ema",
        "exp_avg",
    ):
        assert any(part in name for name in wanted), part
    for name, value in wanted.items():
        assert torch.equal(value, found[name]), name


def test_the_tokenizer_learns_and_hands_its_weights_on(tmp_path, squares):
    config = tokenizer_config(
        {"kind": "vq", "codebook_size": 64, "latent_dim": 4},
        discriminator=None,
        loss={},
        steps=150,
        data={"kinds": ["image"], "sizes": [24], "image_batch": 8},
        validate_every=75,
        optimizer={"lr": 1e-2, "warmup_steps": 10, "weight_decay": 0.0},
        workers={"count": 1, "log_every": 30, "checkpoint_every": 1000},
    )
    train_a_tokenizer(tmp_path / "image", squares, config)
    rows = [row for row in curve(tmp_path / "image") if "loss" in row]
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"] and rows[-1]["image_psnr"] > rows[0]["image_psnr"] + 2
    image = corpora.seal(tmp_path / "image" / "output", "tokenizer_image", config)
    first = load_tokenizer(image)
    joint_config = tokenizer_config(
        {"kind": "vq", "codebook_size": 64, "latent_dim": 4},
        discriminator=None,
        loss={},
        steps=1,
        optimizer={"lr": 1e-9, "warmup_steps": 0},
        engine={"zero_stage": 0, "ema_decay": 0.0},
    )
    train_a_tokenizer(tmp_path / "joint", squares, joint_config, start_from=image)
    joint = load_tokenizer(corpora.seal(tmp_path / "joint" / "output", "tokenizer_joint"))
    pictures = torch.from_numpy(np.stack([corpora.square(c, (4, 4)) for c in corpora.COLOURS])).permute(0, 3, 1, 2)
    pixels = pictures.float() / 255 - 0.5
    still = pixels[:, :, None].repeat(1, 1, 5, 1, 1)
    with torch.no_grad():
        codes, later = first.encode(pixels).codes, joint.encode(still).codes
    assert (joint.encode(pixels).codes == codes).float().mean() > 0.9  # the codebook moved by one batch
    assert torch.equal(later[:, 0], joint.encode(pixels).codes[:, 0])


def test_a_third_stage_takes_everything_but_the_bottleneck(tmp_path, squares):
    vq = tokenizer_config({"kind": "vq", "codebook_size": 32, "latent_dim": 4}, steps=6)
    train_a_tokenizer(tmp_path / "joint", squares, vq)
    joint = corpora.seal(tmp_path / "joint" / "output", "tokenizer_joint", vq)
    kl = tokenizer_config({"kind": "kl", "latent_dim": 6}, steps=0)
    train_a_tokenizer(tmp_path / "kl", squares, kl, start_from=joint)
    before, after = (
        load_file(tmp_path / name / "output" / "tokenizer" / "tokenizer.safetensors") for name in ("joint", "kl")
    )
    kept = {name for name in after if name.startswith(("encoder.", "decoder."))}
    assert len(kept) > 20 and all(torch.equal(before[name], after[name]) for name in kept)
    assert after["post_vq.weight"].shape == (16, 6) and "codebook.embeddings" not in after
    # With no step of its own the stage says what it starts from.
    assert storage.read_json(str(tmp_path / "kl" / "state" / "metrics.json"))["validation_psnr_image"] > 0


def test_a_released_checkpoint_enters_the_pipeline(tmp_path, squares):
    """`official` with no steps takes it as it is; with steps, training goes on from it."""
    from omniloom.models.tokenizer import export_official, load_official
    from omniloom.models.tokenizer.build import build_tokenizer, config_from_dict

    torch.manual_seed(0)
    published = build_tokenizer(
        config_from_dict(
            {
                "compat": "official",
                "width": 32,
                "heads": 2,
                "head_dim": 16,
                "spatial_layers": "t",
                "temporal_layers": 1,
                "decoder_spatial_layers": "t",
                "patch_norm": True,
                "mlp_width": int(32 * 8 / 3),
                "quantizer": {"codebook_size": 32, "latent_dim": 4},
            }
        )
    )
    export_official(published, tmp_path / "released.ckpt")
    fields = {"model": None, "official": str(tmp_path / "released.ckpt")}
    config = tokenizer_config({}, steps=0, **fields)
    model = load_official(tmp_path / "released.ckpt")

    def train(name, config):
        tokenizer_worker.train_worker(
            tokenizer_worker.Job(
                config,
                model.config,
                squares,
                None,
                progress=corpora.Silent(),
                **work(tmp_path / name),
            )
        )
        return load_tokenizer(corpora.seal(tmp_path / name / "output", "tokenizer_image", config))

    taken = train("taken", config)
    pixels = torch.rand(1, 3, 5, 24, 24) - 0.5
    with torch.no_grad():
        assert torch.equal(taken.encode(pixels).codes, model.encode(pixels).codes)
        torch.testing.assert_close(taken(pixels)[0], model(pixels)[0])
    further = train("further", tokenizer_config({}, steps=3, **fields))
    assert not torch.equal(further.pre_vq.weight, taken.pre_vq.weight)
    rows = history.load(str(tmp_path / "further" / "output" / "report" / "history.jsonl"))
    assert rows[0]["step"] == 0 and rows[0]["validation_psnr_image"] > 0


def test_files_that_a_stage_reads_are_named_where_they_are_wrong(tmp_path, squares):
    from omniloom.infra.errors import InputError

    (tmp_path / "vgg.pth").write_bytes(b"no weights")
    vq = {"kind": "vq", "codebook_size": 32, "latent_dim": 4}
    config = tokenizer_config(
        vq,
        loss={"perceptual_weight": 1.0},
        perceptual={"vgg": str(tmp_path / "vgg.pth"), "heads": str(tmp_path / "vgg.pth")},
    )
    with pytest.raises(InputError, match="vgg.pth.*perceptual.heads") as caught:
        train_a_tokenizer(tmp_path / "run", squares, config)
    assert caught.value.file == str(tmp_path / "vgg.pth")
    with pytest.raises(InputError, match="gone.ckpt"):
        read_official(str(tmp_path / "gone.ckpt"))
    with pytest.raises(ValueError, match="perceptual: is missing"):
        tokenizer_config(vq, loss={"perceptual_weight": 1.0})
