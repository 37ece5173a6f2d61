"""Stage `pretokenize`: the corpus into text ids, visual codes and latents, and raw pixels and a frozen encoder's
features where they are asked for, once, for every later epoch.

In: records and the last visual tokenizer; without one, texts alone are taken, and what holds pictures is
counted as `documents_left_out`. Out: see `stages.data.tokens`. A pool of Ray Data actors holds the visual tokenizer;
each takes one shard of records at a time and writes its token shards, so that a killed run goes on with the shards that
are missing and no decoded pixel crosses a process. A picture is brought to the ratio of `aspects` that is nearest to
its own, so that its grid has the shape of the picture. Features are those of the picture scaled to the nearest
multiples of the encoder's patch; of a video, the mean over the frames of a latent frame.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError, OmniLoomError, within
from omniloom.models.tokenizer.build import AnyTokenizerConfig, config_from_dict
from omniloom.models.tokenizer.config import IMAGES_ALONE, TiTokConfig
from omniloom.stages.base import PLACEMENT, RETRIES, Needs, StageContext, path_to
from omniloom.stages.checkpoints.language_model import FILES
from omniloom.stages.checkpoints.outside import require_folder_of_weights
from omniloom.stages.checkpoints.text_tokenizer import CONFIGS
from omniloom.stages.checkpoints.vision_encoder import encoder_config, load_encoder
from omniloom.stages.data.aspects import Aspects, check_names

if TYPE_CHECKING:
    from omniloom.models.text import TextTokenizer

VERSION = 5
FEATURES = "features"

Pending = dict[tuple[str, tuple[int, int]], list[tuple[dict, Any]]]  # (kind, shape): (segment to fill, pixels)


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    image_size: int = Field(256, ge=1, description="pixels a side of the square that images have as many pixels as")
    video_size: int = Field(256, ge=1, description="likewise of videos")
    aspects: tuple[str, ...] = Field(
        ("1:1",), min_length=1, description="ratios, width:height; images and videos are cut to the nearest"
    )
    frames: int = Field(17, ge=1, description="frames of a video, evenly spaced; 1 modulo the temporal patch")
    vocab_size: int = Field(32_000, ge=262, description="size of the byte-level BPE that is trained on the corpus")
    text_tokenizer: str | None = Field(
        None,
        json_schema_extra=path_to("file", beside=CONFIGS),
        description="URI of a tokenizer.json to use in place of training one",
    )
    pixel_patch: int | None = Field(
        None,
        ge=1,
        description="side of the patches in which raw pixels are kept as well, for pixel_diffusion; null keeps none",
    )
    features: str | None = Field(
        None,
        json_schema_extra=path_to("folder", reads=FILES),
        description="URI of a folder of SigLIP or DINOv2 as transformers saves one: "
        "its patch features are kept as well, to align hidden states with; null keeps none",
    )
    precision: str = Field("fp32", pattern="^(fp32|bf16)$")
    batch_size: int = Field(64, ge=1, json_schema_extra=PLACEMENT, description="images a forward pass")
    workers: int = Field(2, ge=1, json_schema_extra=PLACEMENT, description="actors")
    cpus: float = Field(1, gt=0, json_schema_extra=PLACEMENT, description="CPUs of an actor")
    gpus: float = Field(0, ge=0, json_schema_extra=PLACEMENT, description="GPUs of an actor")

    @field_validator("aspects")
    @classmethod
    def _ratios(cls, aspects: tuple[str, ...]) -> tuple[str, ...]:
        return check_names(aspects)


def needs(config: Config) -> Needs:
    return Needs(worker_cpus=config.cpus, worker_gpus=config.gpus)  # one actor at least


def check(config: Config, upstream: Mapping[str, Any], files: bool = True) -> None:
    """That the tokenizer can encode what the kinds of the sources are brought to, and that what is named is there."""
    tokenizer = upstream.get("tokenizer")
    kinds = {"image" if kind == "document" else kind for kind in getattr(upstream.get("records"), "kinds", ())}
    if tokenizer and tokenizer.model:
        check_fit(config, tokenizer.model, kinds)
    if files and config.text_tokenizer:
        _named_text_tokenizer(config.text_tokenizer)
    if files and config.features and "tokenizer" in upstream:
        encoder_config(config.features, FEATURES)
        require_folder_of_weights(storage.absolute(config.features), FEATURES)


def check_counts(config: Config, upstream: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
    tokenizer = upstream.get("tokenizer")
    if tokenizer and tokenizer.model:
        check_fit(config, tokenizer.model, pictures_in(counts))


def run(context: StageContext) -> dict:
    import ray

    from omniloom.models.text import TextTokenizer
    from omniloom.stages.data import records, tokens

    config: Config = context.config
    corpus, visual = context.records, context.tokenizer
    model = visual and config_from_dict(storage.read_json(visual.file("tokenizer", "config.json")))
    if model:
        check_fit(config, model, pictures_in(corpus.metrics))
    feature_dim = encoder_config(config.features, FEATURES).width if model and config.features else None
    text_uri = storage.join(context.state, "text.json")
    if not storage.exists(text_uri):
        storage.write_bytes(text_uri, _text_tokenizer(config, corpus).encode())
    shards = records.shards(corpus.uri)
    done = storage.list_files(storage.join(context.state, "shards"))
    todo = [{"index": i, "uri": uri} for i, uri in enumerate(shards) if f"{i:05d}.json" not in done]
    context.progress(len(shards) - len(todo), len(shards), "shards")
    if todo:
        actors = min(config.workers, len(todo))
        stream = ray.data.from_items(todo, override_num_blocks=len(todo)).map(
            ShardTokenizer,
            fn_constructor_kwargs={
                "config": config,
                "visual": visual,
                "text_uri": text_uri,
                "output": context.output,
                "state": context.state,
            },
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=config.cpus,
            num_gpus=config.gpus or None,
            max_restarts=-1,
            max_task_retries=RETRIES,
        )
        for count, _ in enumerate(stream.iter_rows(), len(shards) - len(todo) + 1):
            context.progress(count, len(shards), "shards")
    stats = [storage.read_json(storage.join(context.state, "shards", f"{i:05d}.json")) for i in range(len(shards))]
    facts = _combine(stats)
    text = TextTokenizer.load(storage.read_bytes(text_uri).decode())
    storage.write_json(
        storage.join(context.output, "tokens.json"),
        {
            "schema_version": tokens.SCHEMA_VERSION,
            "visual_tokenizer": visual and visual.fingerprint,
            "visual_digest": visual and visual.digest,
            "text_digest": text.digest,
            "vocab_size": text.vocab_size,
            "specials": text.specials,
            "image_size": config.image_size,
            "video_size": config.video_size,
            "frames": config.frames,
            "aspects": list(config.aspects),
            "codebook_size": model and model.codebook_size,
            "pixel_patch": config.pixel_patch if model else None,
            "feature_dim": feature_dim,
            "latent_mean": facts.pop("latent_mean"),
            "latent_std": facts.pop("latent_std"),
            "counts": facts,
        },
    )
    storage.write_bytes(storage.join(context.output, "text.json"), text.to_json().encode())
    return {name: value for name, value in facts.items() if isinstance(value, int | float)}


def pictures_in(counts: Mapping[str, Any]) -> set[str]:
    """Which of image and video the records that these counts are of hold; documents hold images."""
    held = {kind for kind in ("image", "video", "document") if counts.get(f"records_{kind}")}
    return {"image" if kind == "document" else kind for kind in held}


def check_fit(config: Config, model: AnyTokenizerConfig, kinds: Collection[str]) -> None:
    """InputError where the tokenizer cannot encode what pictures of these kinds, image and video, are brought to."""
    aspects = Aspects(config.aspects, model.patch_size)
    sizes = {f"{kind}_size": getattr(config, f"{kind}_size") for kind in ("image", "video") if kind in kinds}
    with within():
        for field, size in sizes.items():
            aspects.check([size], field, "aspects")
            for bucket, name in enumerate(config.aspects):
                shape = aspects.shape(bucket, size)
                if config.pixel_patch and any(side % config.pixel_patch for side in shape):
                    raise ValueError(
                        f"pixel_patch: {config.pixel_patch} does not divide the {shape[0]}x{shape[1]} "
                        f"pixels of {field} {size} at aspect {name}"
                    )
        if "video" in kinds and (name := IMAGES_ALONE.get(model.architecture)):
            raise ValueError(f"the corpus holds videos, and the tokenizer is {name}, which is for images alone")
        if config.features and isinstance(model, TiTokConfig):
            raise ValueError("features: the latents of a TiTok stand for no place in the picture, expected null")
        if isinstance(model, TiTokConfig):
            for bucket, name in enumerate(config.aspects):
                if (shape := aspects.shape(bucket, config.image_size)) != model.size:
                    raise ValueError(
                        f"image_size: {config.image_size} at aspect {name} makes pictures of "
                        f"{shape[0]}x{shape[1]}, the tokenizer's are {model.size[0]}x{model.size[1]}"
                    )
        elif "video" in kinds and (config.frames - 1) % model.temporal_patch:
            raise ValueError(
                f"frames: expected 1 + a multiple of temporal_patch {model.temporal_patch}, got {config.frames}"
            )


def _text_tokenizer(config: Config, corpus: Artifact) -> str:
    from omniloom.models.text import TextTokenizer

    if config.text_tokenizer:
        return _named_text_tokenizer(config.text_tokenizer).to_json()
    return TextTokenizer.train(_texts(corpus), config.vocab_size).to_json()


def _named_text_tokenizer(uri: str) -> TextTokenizer:
    from omniloom.stages.checkpoints.text_tokenizer import read_text_tokenizer

    try:
        return read_text_tokenizer(storage.absolute(uri))
    except Exception as error:  # each filesystem has its own for unreachable, unknown, unauthorised
        raise InputError(f"is no tokenizer.json: {error}", field="text_tokenizer", file=uri) from None


def _texts(corpus: Artifact):
    """Captions and texts of the train split, in order: held-out text teaches the tokenizer nothing."""
    from omniloom.stages.data import records

    for row in records.iterate(corpus.uri, split="train", columns=["captions", "text", "segments"]):
        yield from row["captions"] or ()
        if row["text"]:
            yield row["text"]
        for segment in row["segments"] or ():
            if segment["type"] == "text":
                yield segment["text"]


@contextlib.contextmanager
def _naming(record: dict) -> Iterator[None]:
    """An error about one record says which: its source and its path there."""
    try:
        yield
    except OmniLoomError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise OmniLoomError(f"{record['source']}: {record['path']}: {type(error).__name__}: {reason}") from error


class ShardTokenizer:
    """An actor of the pool: one shard of records in, a token shard per split out, with counts and latent sums."""

    def __init__(self, config: Config, visual, text_uri: str, output: str, state: str):
        import torch

        from omniloom.models.text import TextTokenizer
        from omniloom.stages.tokenizer.stage import load_tokenizer

        self.config, self.output, self.state = config, output, state
        self.device = "cuda" if config.gpus and torch.cuda.is_available() else "cpu"
        torch.set_num_threads(max(1, int(config.cpus)))
        self.visual = load_tokenizer(visual).to(self.device) if visual else None
        self.encoder = load_encoder(config.features, FEATURES).to(self.device) if visual and config.features else None
        self.aspects = Aspects(config.aspects, self.visual.config.patch_size) if visual else None
        self.text = TextTokenizer.load(storage.read_bytes(text_uri).decode())

    def __call__(self, item: dict) -> dict:
        from omniloom.stages.data import records, tokens

        rows: dict[str, list[dict]] = {}
        pending: Pending = {}
        stats = _Stats(self.visual.latent_dim if self.visual else 0)
        for record in records.iterate_shard(item["uri"]):
            if record["kind"] != "text" and not self.visual:
                stats.add("documents_left_out")
                continue
            with _naming(record):
                segments = self._segments(record, pending)
            text = " ".join(s["_text"] for s in segments if "_text" in s)
            rows.setdefault(record["split"], []).append(
                {
                    "id": record["id"],
                    "kind": record["kind"],
                    "label": record["label"],
                    "source": record["source"],
                    "path": record["path"],
                    "bytes": len(text.encode()),
                    "segments": segments,
                }
            )
            for segment in segments:
                segment.pop("_text", None)
                segment["_train"] = record["split"] == "train"
            for waiting in pending.values():
                if len(waiting) >= self.config.batch_size:
                    self._encode(waiting, stats)
        for waiting in pending.values():
            self._encode(waiting, stats)
        for split, split_rows in rows.items():
            for row in split_rows:
                stats.count(row, split)
                for segment in row["segments"]:
                    segment.pop("_train", None)
            tokens.write_shard(
                storage.join(self.output, "tokens", split, f"shard-{item['index']:05d}.arrow"), split_rows
            )
        storage.write_bytes(
            storage.join(self.state, "shards", f"{item['index']:05d}.json"), json.dumps(stats.to_dict()).encode()
        )
        return {"index": item["index"]}

    def _segments(self, record: dict, pending: Pending) -> list[dict]:
        import torch

        from omniloom.models.patches import pixels_to_patches
        from omniloom.stages.data.clips import decode_record

        def text(value: str) -> dict:
            return {"kind": "text", "ids": self.text.encode(value), "loss": True, "_text": value}

        def visual(item: dict, kind: str) -> dict:
            """`item`: the record, or a document's segment."""
            size = self.config.image_size if kind == "image" else self.config.video_size
            shape = self.aspects.shape(self.aspects.bucket(item["width"], item["height"]), size)
            segment = {"kind": "visual", "loss": True}
            pixels = decode_record(record, shape, self.config.frames, None if item is record else item)
            if self.config.pixel_patch:
                patches = pixels_to_patches(torch.from_numpy(pixels).permute(3, 0, 1, 2)[None], self.config.pixel_patch)
                segment |= {"pixels": patches.numpy().ravel(), "pixel_grid": list(patches.shape[1:4])}
            pending.setdefault((kind, shape), []).append((segment, pixels))
            return segment

        kind = record["kind"]
        if kind == "text":
            return [text(record["text"])]
        if kind in ("image", "video"):
            return [*map(text, record["captions"] or ()), visual(record, kind)]
        return [text(s["text"]) if s["type"] == "text" else visual(s, "image") for s in record["segments"]]

    def _encode(self, waiting: list[tuple[dict, Any]], stats: _Stats) -> None:
        """Fill the segments of clips of one kind and shape."""
        import numpy as np
        import torch

        from omniloom.models.pixels import half_range

        for start in range(0, len(waiting), self.config.batch_size):
            part = waiting[start : start + self.config.batch_size]
            pixels = torch.from_numpy(np.stack([clip for _, clip in part])).to(self.device)
            pixels = half_range(pixels.permute(0, 4, 1, 2, 3).float())
            with torch.no_grad(), torch.autocast(self.device, torch.bfloat16, enabled=self.config.precision == "bf16"):
                encoded = self.visual.encode(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
                features = self._features(pixels, encoded.latents.shape[2]) if self.encoder else None
            latents = encoded.latents.float().permute(0, 2, 3, 4, 1).cpu().numpy()
            codes = None if encoded.codes is None else encoded.codes.int().cpu().numpy()
            for i, (segment, _) in enumerate(part):
                segment["latents"] = latents[i].ravel()
                segment["codes"] = None if codes is None else codes[i].ravel()
                segment["grid"] = list(latents[i].shape[:3])
                if features is not None:
                    segment |= {"features": features[i].ravel(), "feature_grid": list(features[i].shape[:3])}
                if segment["_train"]:
                    stats.add_latents(latents[i].reshape(-1, latents.shape[-1]))
        waiting.clear()

    def _features(self, pixels, t: int):
        """The encoder's features of clips (B, 3, T, H, W) of t latent frames: float16 (B, t, h, w, F)."""
        import torch
        import torch.nn.functional as F

        from omniloom.models.unified.objectives.alignment import on_frames

        frames, patch = pixels.transpose(1, 2).flatten(0, 1), self.encoder.config.patch_size
        size = tuple(max(1, round(side / patch)) * patch for side in frames.shape[2:])
        if size != tuple(frames.shape[2:]):
            frames = F.interpolate(frames, size=size, mode="bicubic", align_corners=False, antialias=True)
        features = torch.cat([self.encoder(part).float() for part in frames.split(self.config.batch_size)])
        clips = features.unflatten(0, (len(pixels), -1))
        return torch.stack([on_frames(clip, t) for clip in clips]).half().cpu().numpy()


class _Stats:
    """Counts of one shard, and the sums that give the latents' mean and standard deviation over the train split."""

    def __init__(self, channels: int):
        import numpy as np

        self.counts: dict[str, int] = {}
        self.number, self.sum, self.squares = 0, np.zeros(channels), np.zeros(channels)

    def add_latents(self, latents) -> None:
        latents = latents.astype("float64")
        self.number += len(latents)
        self.sum += latents.sum(0)
        self.squares += (latents**2).sum(0)

    def add(self, name: str, value: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + value

    def count(self, row: dict, split: str) -> None:
        for name in ("documents", f"documents_{row['kind']}", f"documents_{split}"):
            self.add(name)
        for segment in row["segments"]:
            name = "text_tokens" if segment["kind"] == "text" else "visual_tokens"
            count = (
                len(segment["ids"])
                if segment["kind"] == "text"
                else int(segment["grid"][0] * segment["grid"][1] * segment["grid"][2])
            )
            self.add(name, count)

    def to_dict(self) -> dict:
        return {
            "counts": self.counts,
            "number": self.number,
            "sum": self.sum.tolist(),
            "squares": self.squares.tolist(),
        }


def _combine(stats: list[dict]) -> dict:
    import numpy as np

    total: dict[str, Any] = {}
    for shard in stats:
        for name, value in shard["counts"].items():
            total[name] = total.get(name, 0) + value
    number = max(1, sum(shard["number"] for shard in stats))
    mean = sum(np.array(shard["sum"]) for shard in stats) / number
    variance = sum(np.array(shard["squares"]) for shard in stats) / number - mean**2
    total["latent_mean"] = mean.tolist()
    # A channel that never moves must not be divided by zero.
    total["latent_std"] = np.sqrt(np.maximum(variance, 1e-8)).tolist()
    return total
