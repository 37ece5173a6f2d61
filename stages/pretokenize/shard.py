"""One shard of records into token shards: what each actor of stage `pretokenize` does."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import OmniLoomError
from omniloom.models.patches import pixels_to_patches
from omniloom.models.pixels import half_range
from omniloom.models.text import TextTokenizer
from omniloom.models.unified.objectives.alignment import on_frames
from omniloom.stages.checkpoints.tokenizer import load_tokenizer
from omniloom.stages.checkpoints.vision_encoder import load_encoder
from omniloom.stages.data import records, tokens
from omniloom.stages.data.aspects import Aspects
from omniloom.stages.data.clips import decode_record
from omniloom.stages.pretokenize.config import FEATURES, Config
from omniloom.stages.pretokenize.index import lengths_uri
from omniloom.stages.pretokenize.stats import Stats

Pending = dict[tuple[str, tuple[int, int]], list[tuple[dict, np.ndarray]]]  # (kind, shape): (segment to fill, pixels)


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


class _Visual:
    """The encoders of pictures: the tokenizer, and where the config names one a vision encoder."""

    def __init__(self, config: Config, visual: Artifact, device: str):
        self.tokenizer = load_tokenizer(visual).to(device)
        self.encoder = load_encoder(config.features, FEATURES).to(device) if config.features else None
        self.aspects, self.batch_size = Aspects(config.aspects, self.tokenizer.config.patch_size), config.batch_size

    def shape(self, width: int, height: int, size: int) -> tuple[int, int]:
        """(height, width) that a picture is brought to."""
        return self.aspects.shape(self.aspects.bucket(width, height), size)

    def features(self, pixels: torch.Tensor, t: int) -> np.ndarray | None:
        """The encoder's features of clips (B, 3, T, H, W) of t latent frames: float16 (B, t, h, w, F)."""
        if self.encoder is None:
            return None
        frames, patch = pixels.transpose(1, 2).flatten(0, 1), self.encoder.config.patch_size
        size = [max(1, round(side / patch)) * patch for side in frames.shape[2:]]
        if size != list(frames.shape[2:]):
            frames = F.interpolate(frames, size=size, mode="bicubic", align_corners=False, antialias=True)
        features = torch.cat([self.encoder(part).float() for part in frames.split(self.batch_size)])
        clips = features.unflatten(0, (len(pixels), -1))
        return torch.stack([on_frames(clip, t) for clip in clips]).half().cpu().numpy()


class ShardTokenizer:
    """An actor of the pool: one shard of records in, a token shard per split out, with counts and latent sums."""

    def __init__(self, config: Config, visual: Artifact | None, text_uri: str, output: str, state: str):
        self.config, self.output, self.state = config, output, state
        self.device = "cuda" if config.gpus and torch.cuda.is_available() else "cpu"
        torch.set_num_threads(max(1, int(config.cpus)))
        self.visual = _Visual(config, visual, self.device) if visual else None
        self.text = TextTokenizer.load(storage.read_bytes(text_uri).decode())

    def __call__(self, item: dict) -> dict:
        rows: dict[str, list[dict]] = {}
        pending: Pending = {}
        stats = Stats(self.visual.tokenizer.latent_dim if self.visual else 0)
        for record in records.iterate_shard(item["uri"]):
            if record["kind"] != "text" and self.visual is None:
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
            shard = storage.join(self.output, "tokens", split, f"shard-{item['index']:05d}.arrow")
            lengths = tokens.write_shard(shard, split_rows)
            storage.write_bytes(lengths_uri(self.state, split, item["index"]), lengths.to_bytes())
        storage.write_bytes(
            storage.join(self.state, "shards", f"{item['index']:05d}.json"), json.dumps(stats.to_dict()).encode()
        )
        return {"index": item["index"]}

    def _segments(self, record: dict, pending: Pending) -> list[dict]:
        def text(value: str) -> dict:
            return {"kind": "text", "ids": self.text.encode(value), "loss": True, "_text": value}

        def visual(item: dict, kind: str) -> dict:
            """`item`: the record, or a document's segment."""
            size = self.config.image_size if kind == "image" else self.config.video_size
            shape = self._pictures.shape(item["width"], item["height"], size)
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

    def _encode(self, waiting: list[tuple[dict, Any]], stats: Stats) -> None:
        """Fill the segments of clips of one kind and shape."""
        for start in range(0, len(waiting), self.config.batch_size):
            part = waiting[start : start + self.config.batch_size]
            pixels = torch.from_numpy(np.stack([clip for _, clip in part])).to(self.device)
            pixels = half_range(pixels.permute(0, 4, 1, 2, 3).float())
            with torch.no_grad(), torch.autocast(self.device, torch.bfloat16, enabled=self.config.precision == "bf16"):
                encoded = self._pictures.tokenizer.encode(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
                features = self._pictures.features(pixels, encoded.latents.shape[2])
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

    @property
    def _pictures(self) -> _Visual:
        if self.visual is None:
            raise OmniLoomError("there is a picture, and no visual tokenizer to encode it with")
        return self.visual
