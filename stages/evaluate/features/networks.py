"""Feature networks, loaded. In: a `FeaturesConfig` and a device. Out: for each network that it names a callable of
pictures, uint8 (H, W, 3) of any sizes, that gives float32 (N, D); `preprocessing` says what it does to them first.

    Inception v3   `models.features.inception`; a TorchScript file scales and normalises uint8 pictures itself
    DINOv2         PIL's bicubic filter, antialiased, to 224x224; ImageNet's mean and deviation; the class token after
                   the final norm, as published for the distance (Stein et al., arXiv 2306.04675)
    CLIP           of CMMD: bicubic without antialiasing to the model's own side, as published for it (arXiv 2401.09603)
                   of the score: PIL's bicubic filter, antialiased, the shorter side to the model's own, cut at the
                   centre
    Scorer         that of the pipeline, `stages.checkpoints.scorer`
    I3D            videos, (T, H, W, 3): floats of 0 to 255, which the file itself scales to [-1, 1] and 224x224
    LPIPS          pictures as they are, in [-1, 1]
Errors: InputError naming the file and the config's field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.contents import read_contents
from omniloom.infra.errors import InputError, within
from omniloom.infra.once import once
from omniloom.models.features.inception import Inception
from omniloom.models.features.scripted import load_scripted
from omniloom.models.pixels import half_range
from omniloom.models.tokenizer.perceptual import MIN_SIDE, PerceptualNetwork, load_perceptual, read_weights
from omniloom.stages.checkpoints.dual_encoder import load_dual_encoder, resized
from omniloom.stages.checkpoints.language_model import FILES
from omniloom.stages.checkpoints.outside import read_copy
from omniloom.stages.checkpoints.scorer import as_one, load_scorer
from omniloom.stages.checkpoints.vision_encoder import load_encoder
from omniloom.stages.evaluate.features.config import FeaturesConfig
from omniloom.stages.evaluate.features.files import check_files, is_scripted

FIELD = "features"
_BATCH, _VIDEOS = 32, 8  # pictures and videos at once
_DINOV2_SIDE = 224


@dataclass(frozen=True)
class Network:
    """One network: `features` takes a batch of pictures of one shape, uint8 (B, H, W, 3), or of videos
    (B, T, H, W, 3). `digest` is of its files and of its preprocessing."""

    name: str
    uri: str
    preprocessing: str
    digest: str
    features: Callable[[np.ndarray], Tensor]
    batch: int = _BATCH

    @torch.no_grad()
    def __call__(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """float32 (N, D), in the order of the clips."""
        found: dict[int, np.ndarray] = {}
        for places in _by_shape(clips):
            for at in range(0, len(places), self.batch):
                part = places[at : at + self.batch]
                rows = self.features(np.stack([clips[place] for place in part])).float().cpu().numpy()
                found |= dict(zip(part, rows, strict=True))
        return np.stack([found[place] for place in range(len(clips))])


def _by_shape(clips: Sequence[np.ndarray]) -> Iterator[list[int]]:
    parts: dict[tuple[int, ...], list[int]] = {}
    for place, clip in enumerate(clips):
        parts.setdefault(clip.shape, []).append(place)
    yield from parts.values()


@dataclass(frozen=True)
class Networks:
    """Those that the config names; the others are None. `scored` and `texts` are CLIP's of the score, where it reads
    texts: pictures as they are seen for it, and embeddings (N, D) of texts. `scorer` and `scorer_texts` are the same of
    the pipeline's own."""

    inception: Network | None = None
    dinov2: Network | None = None
    clip: Network | None = None
    scored: Network | None = None
    texts: Callable[[Sequence[str]], np.ndarray] | None = None
    i3d: Network | None = None
    lpips: PerceptualNetwork | None = None
    scorer: Network | None = None
    scorer_texts: Callable[[Sequence[str]], np.ndarray] | None = None

    @property
    def used(self) -> list[Network]:
        return [net for net in (self.inception, self.dinov2, self.clip, self.scored, self.scorer, self.i3d) if net]


def load(
    config: FeaturesConfig | None, device: str, size: int, frames: int | None, scorer: Artifact | None = None
) -> Networks:
    """Each network is tried on a grey picture of `size` pixels, or video of so many `frames`, so that one that does not
    fit is told before anything is measured."""
    found: dict[str, Any] = _named(config, device, size) if config else {}
    if scorer:
        found |= _scorer(scorer, device)
    networks = Networks(**found)
    for net in networks.used:
        shape = (1, frames or 1, size, size, 3) if net is networks.i3d else (1, size, size, 3)
        _try(net, np.full(shape, 128, np.uint8))
    return networks


def _named(config: FeaturesConfig, device: str, size: int) -> dict[str, Any]:
    check_files(config, FIELD)
    found: dict[str, Any] = {}
    if config.inception:
        found["inception"] = _inception(config.inception, device)
    if config.dinov2:
        found["dinov2"] = _dinov2(config.dinov2, device)
    if config.clip:
        found |= _clip(config.clip, device)
    if config.i3d:
        found["i3d"] = _i3d(config.i3d, device)
    if config.lpips:
        found["lpips"] = _lpips(config, size).to(device)
    return found


def _scorer(artifact: Artifact, device: str) -> dict[str, Any]:
    scorer = load_scorer(artifact, device)
    told = (
        f"PIL's bicubic filter, antialiased, the shorter side to {scorer.side}, cut at the centre; the embeddings of "
        f"{scorer.folds} {'encoders' if scorer.folds > 1 else 'encoder'}, of length 1 together"
    )
    digest = hashlib.sha256(json.dumps([scorer.digest, told]).encode()).hexdigest()
    net = Network("scorer", artifact.uri, told, digest, lambda batch: torch.from_numpy(scorer.features(list(batch))))
    return {"scorer": net, "scorer_texts": lambda texts: as_one(scorer.texts(texts))}


def _try(net: Network, clip: np.ndarray) -> None:
    try:
        rows = net(list(clip))
    except Exception as error:  # whatever a file that is another network does to a picture
        message = f"does not take a clip of {'x'.join(map(str, clip.shape[1:]))}: {type(error).__name__}: {error}"
        raise InputError(message, field=f"{FIELD}.{net.name}", file=net.uri) from None
    if rows.ndim != 2 or not np.isfinite(rows).all():
        given = f"{rows.shape}" if rows.ndim != 2 else "such as are no numbers"
        message = f"expected finite features, (N, D), got {given}"
        raise InputError(message, field=f"{FIELD}.{net.name}", file=net.uri)


def _digest(uri: str, preprocessing: str, reads: Sequence[str] = ()) -> str:
    held = [[file.path, file.identity] for file in read_contents(uri, reads=reads)]
    return hashlib.sha256(json.dumps([held, preprocessing]).encode()).hexdigest()


def _inception(uri: str, device: str) -> Network:
    field = f"{FIELD}.inception"
    if is_scripted(uri):
        module = read_copy(uri, load_scripted, field).to(device)
        preprocessing = "uint8 as they are, which the TorchScript file scales itself; its return_features"

        def scripted(batch: np.ndarray) -> Tensor:
            return module(_channels_first(batch, device), return_features=True).flatten(1)

        return Network("inception", uri, preprocessing, _digest(uri, preprocessing), scripted)
    net = Inception(read_copy(uri, read_weights, field)).to(device)
    return Network(
        "inception",
        uri,
        net.preprocessing,
        _digest(uri, net.preprocessing),
        lambda batch: net(_channels_first(batch, device)),
    )


def _channels_first(batch: np.ndarray, device: str) -> Tensor:
    """uint8 (B, 3, H, W)."""
    return torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous().to(device)


def _dinov2(uri: str, device: str) -> Network:
    encoder = load_encoder(uri, f"{FIELD}.dinov2").to(device)
    side = max(_DINOV2_SIDE // encoder.config.patch_size, 1) * encoder.config.patch_size
    preprocessing = (
        f"PIL's bicubic filter, antialiased, to {side}x{side}; (x / 255 - mean) / deviation of ImageNet; DINOv2's "
        f"class token after the final norm, {encoder.config.width} numbers"
    )

    def features(batch: np.ndarray) -> Tensor:
        small = np.stack([resized(picture, (side, side)) for picture in batch])
        return encoder.class_token(_channels_first(small, device).float() / 255 - 0.5)

    return Network("dinov2", uri, preprocessing, _digest(uri, preprocessing, FILES), features)


def _clip(uri: str, device: str) -> dict[str, Any]:
    encoder = load_dual_encoder(uri, f"{FIELD}.clip", device)
    side, dim = encoder.side, encoder.dim

    def squeezed(batch: np.ndarray) -> Tensor:
        pixels = _channels_first(batch, device).float() / 255
        return encoder.of_pixels(F.interpolate(pixels, size=(side, side), mode="bicubic", align_corners=False))

    family = "CLIP's" if encoder.model.config.family == "clip" else "SigLIP's"
    square = f"the shorter side to {side}, cut at the centre" if encoder.model.crops else f"to {side}x{side}"
    of_cmmd = (
        f"x / 255, bicubic without antialiasing to {side}x{side}, {family} mean and deviation; its picture embedding, "
        f"{dim} numbers"
    )
    of_score = (
        f"PIL's bicubic filter, antialiased, {square}; x / 255, {family} mean and "
        f"deviation; its picture embedding, {dim} numbers, against that of the caption"
    )
    found: dict[str, Any] = {"clip": Network("clip", uri, of_cmmd, _digest(uri, of_cmmd, FILES), squeezed)}
    if encoder.words:
        found["scored"] = Network("clip", uri, of_score, _digest(uri, of_score, FILES), encoder.pictures)
        found["texts"] = lambda texts: encoder.texts(texts).cpu().numpy()
    return found


def _i3d(uri: str, device: str) -> Network:
    module = read_copy(uri, load_scripted, f"{FIELD}.i3d").to(device)
    preprocessing = (
        "floats of 0 to 255, which the TorchScript file scales to [-1, 1] and resizes itself (rescale, resize); its "
        "return_features"
    )

    def features(batch: np.ndarray) -> Tensor:
        clips = torch.from_numpy(batch).permute(0, 4, 1, 2, 3).contiguous().float().to(device)
        return module(clips, rescale=True, resize=True, return_features=True).flatten(1)

    return Network("i3d", uri, preprocessing, _digest(uri, preprocessing), features, _VIDEOS)


def _lpips(config: FeaturesConfig, size: int) -> PerceptualNetwork:
    files = config.lpips
    if files is None:
        raise ValueError("lpips: is missing")
    if size < MIN_SIDE:
        raise InputError(
            f"compares pictures of at least {MIN_SIDE}x{MIN_SIDE}, got {size}x{size}", field="features.lpips"
        )
    vgg = read_copy(files.vgg, read_weights, f"{FIELD}.lpips.vgg")
    heads = read_copy(files.heads, read_weights, f"{FIELD}.lpips.heads")
    with within(f"{FIELD}.lpips"):
        return load_perceptual(vgg, heads, vgg_source=files.vgg, heads_source=files.heads)


@torch.no_grad()
def lpips(net: PerceptualNetwork, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of pairs of pictures, uint8 (N, H, W, 3) both: (N,)."""
    device, found = net.shift.device, []
    for at in range(0, len(a), _BATCH):
        sides = [half_range(_channels_first(x[at : at + _BATCH], str(device)).float()) for x in (a, b)]
        found.append(net(*sides).cpu().numpy())
    return np.concatenate(found)


def real_features(
    net: Network, clips: Any, indices: Sequence[int], place: Sequence[Any], known: dict[int, np.ndarray]
) -> np.ndarray:
    """Of the clips of a store by their indices, (N, D). Each is seen once: `known` has those of this evaluation, and a
    file of this machine's cache those of earlier ones, by the network's digest and the `place` that tells what the
    clips are."""
    if missing := [i for i in dict.fromkeys(indices) if i not in known]:
        ids = [clips.record(i)["id"] for i in missing]
        digest = hashlib.sha256(json.dumps([net.digest, list(map(str, place)), ids]).encode()).hexdigest()
        rows = _remembered(digest, lambda: np.concatenate(list(_computed(net, clips, missing))))
        known |= dict(zip(missing, rows, strict=True))
    return np.stack([known[i] for i in indices])


def _computed(net: Network, clips: Any, indices: Sequence[int]) -> Iterator[np.ndarray]:
    for at in range(0, len(indices), net.batch):
        found = [clips[i] for i in indices[at : at + net.batch]]
        yield net([clip if net.name == "i3d" else clip[0] for clip in found])


def _remembered(digest: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    def write(file: Path) -> None:
        np.save(file, make())

    return np.load(once(storage.cache_folder() / f"features-{digest[:32]}.npy", write))
