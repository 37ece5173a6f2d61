"""Measures a tokenizer by its latents of pictures. In: records and a tokenizer. Out: `Measured`: figures, a PNG and the
latents' spectrum.

Pictures are squares of one size, each cut at the centre. Decoded ones are held against the originals by the Fréchet
distance of normal laws fitted to shrunken pixels, or to Inception's features where the config names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError
from omniloom.models.pixels import half_range, to_uint8
from omniloom.models.tokenizer.base import VisualTokenizer
from omniloom.stages.checkpoints.tokenizer import load_tokenizer
from omniloom.stages.data.aspects import Aspects
from omniloom.stages.data.clips import ClipStore
from omniloom.stages.evaluate import metrics
from omniloom.stages.evaluate.features import networks
from omniloom.stages.evaluate.features.config import FeaturesConfig
from omniloom.stages.evaluate.figure import HIGH, LEAST_PICTURES, LOW
from omniloom.stages.evaluate.intervals import interval
from omniloom.stages.evaluate.items import values_of
from omniloom.stages.latents import figures
from omniloom.stages.latents.config import Config
from omniloom.stages.pretokenize.bits import entropy, written
from omniloom.stages.reporting import report

_BATCH = 64  # pictures at once
_SHOWN = 12
_LOSSLESS = 256  # pictures that are written as PNG and WebP
_REPLACED = 0.25  # of a picture's codes, for the perturbed distance
_NEAREST = 0.05  # of the codebook, that a code is replaced from
_POSITIONS = 4096  # for the velocity's variance of a position by itself


@dataclass
class Measured:
    figures: dict[str, float]
    picture: bytes
    spectrum: np.ndarray | None


@dataclass
class Encoded:
    """latents float32 (N, C, h, w); codes int64 (N, h, w) or None."""

    latents: np.ndarray
    codes: np.ndarray | None

    @cached_property
    def flat(self) -> np.ndarray:
        """(N, D), each channel of unit variance over pictures and positions."""
        return figures.standardized(self.latents, (0, 2, 3)).reshape(len(self.latents), -1)


class Measuring:
    """`progress` is called with the parts that are done and their number."""

    def __init__(self, config: Config, records: Artifact, tokenizer: Artifact, device: str):
        self.config, self.records, self.device = config, records, device
        self.model: VisualTokenizer = load_tokenizer(tokenizer).to(device)
        aspects = Aspects(("1:1",), self.model.config.patch_size)
        self._store = lambda split: ClipStore(records, "image", split, aspects, config.size, 1, 0)
        self.held = self._drawn(config.split, config.pictures)
        if (count := len(self.held.pictures)) < LEAST_PICTURES:
            told = f"expected at least {LEAST_PICTURES} pictures in the {config.split} split, got {count}"
            raise InputError(told, field="split")
        self.network = self._network()

    def _network(self) -> Callable[[Sequence[np.ndarray]], np.ndarray] | None:
        if self.config.inception is None:
            return None
        named = FeaturesConfig(inception=self.config.inception)
        return networks.load(named, self.device, self.config.size, None).inception

    def _drawn(self, split: str, count: int) -> Drawn:
        store = self._store(split)
        chosen = [int(i) for i in store.spread(self.config.seed)[:count]]
        return Drawn([store[i][0] for i in chosen], [store.record(i) for i in chosen])

    def __call__(self, say: Callable[[str], None]) -> Measured:
        parts = (self._reconstructed, self._interpolated, self._perturbed, self._turned, self._laws, self._probed)
        found: dict[str, float] = {}
        for number, part in enumerate((*parts, self._bits), 1):
            say(f"{part.__name__.strip('_')} ({number} of {len(parts) + 1})")
            found |= part()
        return Measured(found, self._picture(), figures.spectrum(self.encoded.latents))

    @cached_property
    def encoded(self) -> Encoded:
        return self._encode(self.held.pictures)

    @torch.no_grad()
    def _encode(self, pictures: Sequence[np.ndarray]) -> Encoded:
        latents, codes = [], []
        for at in range(0, len(pictures), _BATCH):
            batch = torch.from_numpy(np.stack(pictures[at : at + _BATCH])).permute(0, 3, 1, 2).float()
            encoded = self.model.encode(half_range(batch.to(self.device)))
            latents.append(encoded.latents[:, :, 0].float().cpu().numpy())
            if encoded.codes is not None:
                codes.append(encoded.codes[:, 0].cpu().numpy())
        return Encoded(np.concatenate(latents), np.concatenate(codes) if codes else None)

    @torch.no_grad()
    def _decode(self, values: np.ndarray) -> list[np.ndarray]:
        """Pictures, uint8 (H, W, 3), of latents (N, C, h, w), which move to their nearest codes, or of codes
        (N, h, w)."""
        pictures: list[np.ndarray] = []
        for at in range(0, len(values), _BATCH):
            part = torch.from_numpy(values[at : at + _BATCH]).to(self.device)
            given = {"codes": part[:, None]} if part.ndim == 3 else {"latents": part[:, :, None]}
            pictures += list(to_uint8(self.model.decode(**given))[:, 0])
        return pictures

    def _features(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        return self.network(pictures) if self.network else metrics.shrink(pictures, self.config.pixels)

    @cached_property
    def _real(self) -> np.ndarray:
        return self._features(self.held.pictures)

    def _distance(self, name: str, pictures: Sequence[np.ndarray]) -> dict[str, float]:
        """The Fréchet distance of decoded pictures to the originals, with its interval over the decoded ones."""
        distance, _, parts = metrics.frechet_parts(self._real, self._features(pictures))
        return self._with_interval(name, distance + parts, distance)

    def _with_interval(self, name: str, values: np.ndarray, figure: float | None = None) -> dict[str, float]:
        held = values_of([record["id"] for record in self.held.records], values)
        ends = interval(held, self.config.seed)
        return {name: held.mean if figure is None else figure} | (
            {name + LOW: ends[0], name + HIGH: ends[1]} if ends else {}
        )

    @cached_property
    def reconstructions(self) -> list[np.ndarray]:
        encoded = self.encoded
        return self._decode(encoded.latents if encoded.codes is None else encoded.codes)

    @cached_property
    def halfway(self) -> list[np.ndarray]:
        """Each picture's latents half the way to its nearest neighbour's in latent space, decoded (iFID)."""
        neighbours = figures.nearest(self.encoded.flat)[0][:, 0]
        return self._decode((self.encoded.latents + self.encoded.latents[neighbours]) / 2)

    @cached_property
    def perturbed(self) -> list[np.ndarray]:
        """Decoded with a quarter of the codes each replaced by one of its nearest twentieth of the codebook (pFID); of
        continuous latents with noise of half their channel's deviation."""
        rng, encoded = np.random.default_rng((self.config.seed, 32)), self.encoded
        if encoded.codes is None or not self.model.codebook_size:
            deviation = encoded.latents.std((0, 2, 3), keepdims=True)
            noise = rng.standard_normal(encoded.latents.shape, np.float32)
            return self._decode(encoded.latents + 0.5 * deviation * noise)
        near = self._near_codes(max(1, round(_NEAREST * self.model.codebook_size)))
        drawn = near[encoded.codes, rng.integers(0, near.shape[1], encoded.codes.shape)]
        replaced = rng.random(encoded.codes.shape) < _REPLACED
        return self._decode(np.where(replaced, drawn, encoded.codes))

    @torch.no_grad()
    def _near_codes(self, count: int) -> np.ndarray:
        """Of each code the `count` nearest others, int64 (K, count)."""
        size = cast(int, self.model.codebook_size)  # asked where there are codes alone
        vectors: Tensor = self.model.codebook.decode_codes(torch.arange(size, device=self.device))
        return figures.nearest(vectors.double().cpu().numpy(), min(count, size - 1))[0]

    def _reconstructed(self) -> dict[str, float]:
        found = metrics.reconstruction(np.stack(self.held.pictures), np.stack(self.reconstructions))
        told = [self._with_interval(name, values) for name, values in found.items()]
        return {name: value for part in told for name, value in part.items()} | self._distance(
            "rfid", self.reconstructions
        )

    def _interpolated(self) -> dict[str, float]:
        return self._distance("ifid", self.halfway)

    def _perturbed(self) -> dict[str, float]:
        return self._distance("pfid", self.perturbed)

    def _turned(self) -> dict[str, float]:
        """How near the decoded picture of turned latents is to the turned reconstruction, in dB (EQ-VAE, arXiv
        2502.09509); of square grids with places."""
        latents = self.encoded.latents
        if latents.shape[2] != latents.shape[3] or latents.shape[2] == 1:
            return {}
        turned = self._decode(np.ascontiguousarray(np.rot90(latents, axes=(2, 3))))
        expected = np.ascontiguousarray(np.rot90(np.stack(self.reconstructions), axes=(1, 2)))
        return self._with_interval("equivariance_psnr", metrics.reconstruction(expected, np.stack(turned))["psnr"])

    def _laws(self) -> dict[str, float]:
        flat, latents = self.encoded.flat, self.encoded.latents
        positions = flat.reshape(latents.shape).transpose(0, 2, 3, 1).reshape(-1, latents.shape[1])
        rng = np.random.default_rng((self.config.seed, 33))
        some = positions[rng.permutation(len(positions))[:_POSITIONS]]
        told = {
            "viv": figures.velocity_variance(flat, self.config.seed),
            "viv_position": figures.velocity_variance(some, self.config.seed),
            "intrinsic_dimension": figures.intrinsic_dimension(flat),
            "spectrum_slope": figures.spectrum_slope(figures.spectrum(latents)),
            "latent_numbers": float(flat.shape[1]),
        }
        return {name: value for name, value in told.items() if value is not None}

    def _probed(self) -> dict[str, float]:
        held = [place for place, record in enumerate(self.held.records) if record["label"] is not None]
        train = self._drawn("train", self.config.train_pictures) if held else None
        labelled = [i for i, record in enumerate(train.records) if record["label"] is not None] if train else []
        if train is None or not labelled:
            return {}
        latents = self._encode([train.pictures[i] for i in labelled]).latents.reshape(len(labelled), -1)
        own = self.encoded.latents.reshape(len(self.held.records), -1)[held]
        names = [train.records[i]["label"] for i in labelled]
        right = figures.probe(latents, names, own, [self.held.records[i]["label"] for i in held], self.config.seed)
        if right is None:
            return {}
        values = values_of([self.held.records[i]["id"] for i in held], right.astype(float))
        ends = interval(values, self.config.seed)
        found = {"probe_accuracy": values.mean}
        return found | ({"probe_accuracy" + LOW: ends[0], "probe_accuracy" + HIGH: ends[1]} if ends else {})

    def _bits(self) -> dict[str, float]:
        """Bits a pixel: of codes at most and by how often each occurs, and of PNG and WebP without loss."""
        sizes = [written(picture) for picture in self.held.pictures[:_LOSSLESS]]
        pixels, png, webp = (sum(column) for column in zip(*sizes, strict=True))
        found = {"bits_png": 8 * png / pixels, "bits_webp": 8 * webp / pixels}
        if (codes := self.encoded.codes) is not None and (size := self.model.codebook_size):
            share = codes[0].size / self.config.size**2
            used = np.bincount(codes.reshape(-1), minlength=size)
            found |= {
                "bits_codes": float(np.log2(size)) * share,
                "bits_entropy": entropy(used) * share,
                "codebook_usage": float((used > 0).mean()),
            }
        return found

    def _picture(self) -> bytes:
        """Original, reconstruction, half way to the neighbour, perturbed: one below the other."""
        rows = zip(*(p[:_SHOWN] for p in (self.held.pictures, self.reconstructions, self.halfway, self.perturbed)))
        return report.grid([np.concatenate(column, axis=0) for column in rows], _SHOWN, min_size=128)


@dataclass
class Drawn:
    """Pictures, uint8 (H, W, 3), and their records."""

    pictures: list[np.ndarray]
    records: list[dict[str, Any]]
