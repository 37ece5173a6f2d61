"""Small corpora for tests, made on the spot: an ingest artifact of coloured squares, a pretokenize artifact of digits.

Both are folders as their stages write them, with a manifest that hashes every file.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.models.text import TextTokenizer
from omniloom.models.tokenizer.config import TokenizerConfig
from omniloom.models.tokenizer.quantizers.config import VQConfig
from omniloom.stages.data import index as index_module
from omniloom.stages.data import records, token_shards
from omniloom.stages.data.media.decode import encode_mp4, encode_png
from omniloom.stages.data.media.limits import DEFAULT_LIMITS
from omniloom.stages.ingest.rows import media_row
from omniloom.stages.pretokenize.index import write_indices

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 230), "white": (240, 240, 240)}


class Silent:
    """A tracker and a progress display that keep what they are told."""

    def __init__(self):
        self.metrics: list[tuple[int, dict]] = []
        self.notes: list[str] = []

    def say(self, text):
        assert text

    def log_metrics(self, metrics, step=0, seen=None):
        self.metrics.append((step, dict(metrics)))

    def log_image(self, picture, name, step=0):
        assert picture.startswith(b"\x89PNG")

    def log_file(self, path, folder):
        self.notes.append(f"{folder}/{Path(path).name}")

    def log_text(self, text, file):
        assert text and file

    def measured(self, step, figures):
        assert figures

    def note(self, text):
        self.notes.append(text)

    def __call__(self, *arguments, **facts):
        pass


class Killed(BaseException):
    """Ends a process as a kill does: nothing in the product catches it."""


class KilledAt(Silent):
    """A progress display in whose hands the process dies after a step."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def __call__(self, done, total, unit, **facts):
        if done == self.step:
            raise Killed


def seal(folder: Path, stage: str, config=None) -> Artifact:
    """The folder as a published artifact, made by this stage config."""
    files = [
        {"path": name, "bytes": size, "sha256": storage.sha256(str(folder / name))}
        for name, size in storage.list_files(str(folder)).items()
    ]
    return Artifact(
        stage,
        hashlib.sha256(str(folder).encode()).hexdigest(),
        str(folder),
        {
            "files": files,
            "config": config.model_dump(mode="json") if config else {},
            "metrics": {},
            "times": {"seconds": 1.0, "ended": "2026-01-01T00:00:00Z"},
        },
    )


def square(colour: str, at: tuple[int, int], size: int = 24) -> np.ndarray:
    picture = np.full((size, size, 3), 20, np.uint8)
    y, x = at
    picture[y : y + 8, x : x + 8] = COLOURS[colour]
    return picture


def ingest(
    folder: Path,
    images: int = 24,
    videos: int = 6,
    frames: int = 5,
    instead: Mapping[int, bytes] = MappingProxyType({}),
) -> Artifact:
    """Squares of four colours, still and moving; the last of six goes to validation, the one before to test. `instead`:
    PNGs by number of a picture."""
    rows = []
    for number in range(images + videos):
        kind = "image" if number < images else "video"
        colour = list(COLOURS)[number % len(COLOURS)]
        y, x = (number * 5) % 17, (number * 7) % 16
        if kind == "image":
            media = instead.get(number) or encode_png(square(colour, (y, x)))
        else:
            media = encode_mp4(np.stack([square(colour, (y, (x + 2 * t) % 16)) for t in range(frames)]), 8)
        split = {5: "validation", 4: "test"}.get(number % 6, "train")
        rows.append(
            {
                "id": hashlib.sha256(media + bytes([number % 256])).hexdigest(),
                "kind": kind,
                "split": split,
                "media": media,
                "format": "png" if kind == "image" else "mp4",
                "caption": f"a {colour} square",
                "label": colour,
                "width": 24,
                "height": 24,
                "frames": 1 if kind == "image" else frames,
                "source": "squares",
                "path": f"{number}",
                "part": 0,
                "synthetic": False,
                "meta": "{}",
            }
        )
    half = len(rows) // 2
    for index, part in enumerate((rows[:half], rows[half:])):
        records.write_shard(str(folder / records.shard_name(index)), part)
    return seal(folder, "ingest")


def ingest_shapes(folder: Path) -> Artifact:
    """Captioned noise of many shapes, 24 pictures, 9 clips and an illustrated document, with the facts that ingest
    finds; some pictures are stored lying on their side under an EXIF tag. Three are held out."""
    rng = np.random.default_rng(0)
    sides = [(60, 60), (48, 72), (90, 50), (64, 61), (40, 95)]  # (height, width)
    rows = []
    for number in range(24):
        picture = Image.fromarray(rng.integers(0, 256, (*sides[number % 5], 3), np.uint8))
        exif = Image.Exif()
        if number % 5 == 1 and number > 10:
            exif[0x0112] = 6  # a quarter turn
        sink = io.BytesIO()
        picture.save(sink, "PNG", exif=exif)
        rows.append(media_row("image", sink.getvalue(), DEFAULT_LIMITS))
    for number in range(9):
        clip = rng.integers(0, 256, (5, *sides[number % 3], 3), np.uint8)
        rows.append(media_row("video", encode_mp4(clip, 8), DEFAULT_LIMITS))
    for row in rows:
        row["caption"] = f"a {row['width']} by {row['height']} square"
    segments = [
        {"type": "text", "text": "red and blue"},
        *(
            {"type": "image", "text": "", **{name: rows[i][name] for name in ("media", "width", "height")}}
            for i in (1, 2)
        ),
    ]
    rows.append(
        {"id": hashlib.sha256(b"document").hexdigest(), "kind": "document", "segments": segments, "synthetic": False}
    )
    for number, row in enumerate(rows):
        row |= {
            "split": "validation" if number in (3, 4, 25) else "train",
            "source": "noise",
            "path": str(number),
            "part": 0,
            "meta": "{}",
        }
    records.write_shard(str(folder / records.shard_name(0)), rows)
    return seal(folder, "ingest")


def token_rows(
    text: TextTokenizer,
    rng: np.random.Generator,
    images: int,
    videos: int,
    texts: int,
    documents: int,
    channels: int = 4,
    codes: bool = True,
    longest_text: int = 60,
    pixel_patch: int | None = None,
) -> list[dict]:
    """Documents of every kind in the form that `token_shards.write_shard` takes; the tokenizer's patches are 4x8x8."""

    def visual(grid):
        count = int(np.prod(grid))
        segment = latents(grid, count)
        if pixel_patch:
            t, h, w = grid
            grid = (4 * t - 3, h * 8 // pixel_patch, w * 8 // pixel_patch)
            segment |= {
                "pixel_grid": list(grid),
                "pixels": rng.integers(0, 256, int(np.prod(grid)) * pixel_patch**2 * 3).astype(np.uint8),
            }
        return segment

    def latents(grid, count):
        return {
            "kind": "visual",
            "loss": True,
            "grid": list(grid),
            "latents": rng.normal(size=count * channels).astype(np.float32),
            "codes": rng.integers(0, 64, count).astype(np.int32) if codes else None,
        }

    def written(words):
        return {"kind": "text", "loss": True, "ids": text.encode(" ".join(words))}

    def words(count):
        return list(rng.choice(["red", "green", "blue", "square", "moves", "the", "a"], count))

    def row(kind, segments):
        number = len(rows)
        rows.append(
            {
                "id": hashlib.sha256(f"{kind}{number}".encode()).hexdigest(),
                "kind": kind,
                "label": None,
                "bytes": 7 * number,
                "segments": segments,
            }
        )

    rows: list[dict] = []
    for number in range(images):
        row("image", [*([written(words(1 + number % 5))] if number % 4 else []), visual((1, 3, 3))])
    for _ in range(videos):
        row("video", [written(words(3)), visual((2, 3, 3))])
    for _ in range(texts):
        row("text", [written(words(int(rng.integers(1, longest_text))))])
    for number in range(documents):
        parts = []
        for _ in range(1 + number % 3):
            parts += [written(words(int(rng.integers(1, 12)))), visual((1, 2, 2))]
        row("document", (parts + [written(words(4))])[number % 2 :])
    return rows


def text_tokenizer() -> TextTokenizer:
    return TextTokenizer.train(["a red square moves", "the green square", "a blue square"] * 3, 300)


def pretokenize(
    folder: Path,
    splits: dict[str, list[list[dict]]],
    text: TextTokenizer,
    channels: int = 4,
    visual_digest: str = "",
    pixel_patch: int | None = None,
) -> Artifact:
    """A token artifact: `splits` maps a split to the rows of each of its shards, beside those that lie there."""
    for split, shards in splits.items():
        for number, rows in enumerate(shards):
            token_shards.write_shard(str(folder / "tokens" / split / f"shard-{number:05d}.arrow"), rows)
    write_indices(str(folder), str(folder.parent / "state"))
    storage.write_json(
        str(folder / "tokens.json"),
        {
            "schema_version": token_shards.SCHEMA_VERSION,
            "visual_tokenizer": "test",
            "visual_digest": visual_digest,
            "text_digest": text.digest,
            "vocab_size": text.vocab_size,
            "specials": text.specials,
            "image_size": 24,
            "video_size": 24,
            "frames": 5,
            "latent_mean": [0.1] * channels,
            "latent_std": [0.5] * channels,
            "counts": {},
            "codebook_size": 64,
            "pixel_patch": pixel_patch,
        },
    )
    storage.write_bytes(str(folder / "text.json"), text.to_json().encode())
    return seal(folder, "pretokenize")


def index_of(
    documents: list[tuple[str, list[tuple[str, int]]]], shards: int = 2, ids: Sequence[int] = ()
) -> index_module.Index:
    """The index of documents, each a kind and (text or visual, tokens) of its segments, in so many shards. `ids` are
    theirs, by default their numbers."""
    bounds = [round(number * len(documents) / shards) for number in range(shards + 1)]
    with tempfile.TemporaryDirectory() as folder:
        known = np.array(ids or range(len(documents)), np.uint64)
        parts = ((documents[first:last], known[first:last]) for first, last in itertools.pairwise(bounds))
        index_module.write(Path(folder), ((number, _lengths(*part)) for number, part in enumerate(parts)))
        made = index_module.Index(Path(folder))
        for file in Path(folder).glob("*.npy"):
            made.column(file.stem)
    return made


def _lengths(documents: list[tuple[str, list[tuple[str, int]]]], ids: np.ndarray) -> index_module.Lengths:
    segments = np.array([-n if kind == "visual" else n for _, held in documents for kind, n in held], np.int32)
    kinds = np.array([index_module.KINDS.index(kind) for kind, _ in documents], np.uint8)
    counts = np.array([len(held) for _, held in documents], np.int64)
    return index_module.Lengths(kinds, counts, segments, segments, ids)


def small_tokenizer(layers: str = "t") -> TokenizerConfig:
    """The architecture of the tokenizers that tests put beside models: 32 codes of 4 numbers."""
    return TokenizerConfig(
        width=32,
        heads=2,
        head_dim=16,
        spatial_layers=layers,
        temporal_layers=1,
        decoder_spatial_layers=layers,
        quantizer=VQConfig(codebook_size=32, latent_dim=4),
    )


def tokenizer(folder: Path, channels: int = 4, quantizer=None) -> Artifact:
    """An untrained visual tokenizer as the tokenizer stages save one: 8x8 patches of a 24x24 picture are 3x3."""
    config = TokenizerConfig(
        patch_size=8,
        temporal_patch=4,
        width=16,
        heads=2,
        head_dim=8,
        spatial_layers="t",
        temporal_layers=1,
        decoder_spatial_layers="t",
        quantizer=quantizer or VQConfig(codebook_size=64, latent_dim=channels),
    )
    return save_tokenizer(folder, config)


def preset_tokenizer(folder: Path, preset: str) -> Artifact:
    """That of a preset, untrained."""
    from omniloom.pipelines.config import load

    return save_tokenizer(folder, load(preset, ["data=/data"]).stages.tokenizer_image.model)


def save_tokenizer(folder: Path, config) -> Artifact:
    import json
    from dataclasses import asdict

    from safetensors.torch import save_file

    from omniloom.models.tokenizer.omni import OmniTokenizer

    torch.manual_seed(0)
    (folder / "tokenizer").mkdir(parents=True)
    save_file(
        {name: value.contiguous() for name, value in OmniTokenizer(config).state_dict().items()},
        folder / "tokenizer" / "tokenizer.safetensors",
    )
    storage.write_bytes(str(folder / "tokenizer" / "config.json"), json.dumps(asdict(config)).encode())
    return seal(folder, "tokenizer_joint")


def vision_encoder(folder: Path, image_size: int = 24) -> Path:
    """A random SigLIP vision tower of 8x8 patches and 24 channels, in the folder that `transformers` makes of it."""
    import transformers

    torch.manual_seed(5)
    model = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=image_size,
            patch_size=8,
            vision_use_head=False,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    return folder


def language_model(folder: Path, family: str = "Llama", tied: bool = False) -> Path:
    """A tiny language model as transformers saves one, Llama, Qwen2, Qwen3 or Phi, with a text tokenizer of its own."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        ["a red square moves", "the green square"] * 3,
        trainers.BpeTrainer(vocab_size=290, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    torch.manual_seed(0)
    shape = getattr(transformers, f"{family}Config")
    getattr(transformers, f"{family}ForCausalLM")(
        shape(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            **({"head_dim": 12} if family not in ("Qwen2", "Phi") else {}),
            tie_word_embeddings=tied,
            **{"layer_norm_eps" if family == "Phi" else "rms_norm_eps": 1e-5},
            bos_token_id=tokenizer.token_to_id("<|begin_of_text|>"),
            eos_token_id=tokenizer.token_to_id("<|end_of_text|>"),
        )
    ).save_pretrained(folder, max_shard_size="20KB")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
