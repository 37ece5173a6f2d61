"""A trained model as one folder. In: a folder, or the parts that training made. Out: the other.

The folder holds all that sampling needs and nothing that runs code:
    config.json             configs of both networks, latent statistics, sizes, format version, text digest
    unified.safetensors     the unified transformer; a tied head is stored once
    tokenizer.safetensors   the visual tokenizer; a model of text alone has none
    text.json               the text tokenizer
`safetensors` and `tokenizers` are imported when a folder is written or read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import torch

from omniloom.models.text import TextTokenizer
from omniloom.models.tokenizer.build import AnyTokenizerConfig, build_tokenizer, config_from_dict
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.config import PIXEL_DIFFUSION, DiffusionConfig
from omniloom.models.unified.generation.sampling import OWN_SAMPLING, VisualSampling
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.representations import objective_row, patch_numbers

if TYPE_CHECKING:
    from omniloom.models.tokenizer.base import VisualTokenizer

VERSION = 1


@dataclass(frozen=True)
class BundleConfig:
    """The contents of `config.json`.

    tokenizer                of pictures; None, with what follows up to `objectives`, in a model of text alone
    latent_mean, latent_std  per channel of the tokenizer's latents; the unified model sees
                             (latent - mean) / std
    image_size               (height, width) in pixels that training used, and sampling uses by default
    num_frames, fps          of videos
    snap_latents             move sampled latents to their nearest code before decoding; KL has none
    objectives               what was trained on pictures; sampling uses the first where none is asked for
    pixel_diffusion          of raw pixels; pixel_patch: side of their square patches
    sampling                 how the first objective draws where nothing is chosen, in place of `VisualSampling`'s own
                             defaults: any of `OWN_SAMPLING`
    """

    unified: UnifiedConfig
    diffusion: DiffusionConfig
    tokenizer: AnyTokenizerConfig | None
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    image_size: tuple[int, int] | None
    num_frames: int = 1
    fps: float = 8.0
    snap_latents: bool = True
    objectives: tuple[str, ...] = ("latent_diffusion",)
    pixel_diffusion: DiffusionConfig = PIXEL_DIFFUSION
    pixel_patch: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("latent_mean", "latent_std", "image_size", "objectives"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("tokenizer", "image_size"):
            if self.objectives and getattr(self, name) is None:
                raise ValueError(f"BundleConfig.{name}: is missing, and {self.objectives[0]} needs it")
        self._check_sampling()
        if self.tokenizer is None:
            return
        channels = self.tokenizer.latent_dim
        for name in ("latent_mean", "latent_std"):
            if len(getattr(self, name)) != channels:
                raise ValueError(
                    f"BundleConfig.{name}: expected {channels} values, one a channel, got {len(getattr(self, name))}"
                )
        if not all(value > 0 for value in self.latent_std):
            raise ValueError(f"BundleConfig.latent_std: expected positive numbers, got {self.latent_std}")
        sizes = {
            "latent_dim": channels,
            "codebook_size": self.tokenizer.codebook_size,
            "pixel_dim": self.pixel_patch and patch_numbers(self.pixel_patch),
        }
        for name in self.objectives:
            size = objective_row(name).representation.size
            if getattr(self.unified, size) is None or getattr(self.unified, size) != sizes[size]:
                raise ValueError(
                    f"BundleConfig.objectives: {name} needs {size} {sizes[size]}, unified.{size} is "
                    f"{getattr(self.unified, size)}"
                )
            if objective_row(name).by_density and not self.unified.has_density:
                raise ValueError(f"BundleConfig.objectives: {name} needs a density head, unified.density is missing")

    def _check_sampling(self) -> None:
        if not isinstance(self.sampling, Mapping) or set(self.sampling) - set(OWN_SAMPLING):
            raise ValueError(
                f"BundleConfig.sampling: expected any of {', '.join(OWN_SAMPLING)} by name, got {self.sampling!r}"
            )
        try:
            VisualSampling(**self.sampling)
        except ValueError as error:
            raise ValueError(f"BundleConfig.sampling.{error}") from None


def _from_dict(cls: type, values: Any, where: str) -> Any:
    """Rebuild nested frozen dataclasses from JSON. ValueError naming an unknown or missing field."""
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected an object, got {values!r}")
    hints, known = get_type_hints(cls), {f.name: f for f in dataclasses.fields(cls)}
    for name in values:
        if name not in known:
            raise ValueError(f"{where}.{name}: unknown field")
    for name, held in known.items():
        absent = held.default is dataclasses.MISSING and held.default_factory is dataclasses.MISSING
        if absent and name not in values:
            raise ValueError(f"{where}.{name}: missing")
    read = dict(values)
    for name, value in values.items():
        if name == "tokenizer" and value is not None:
            read[name] = config_from_dict(value, f"{where}.{name}")
        elif dataclasses.is_dataclass(hints[name]):
            read[name] = _from_dict(hints[name], value, f"{where}.{name}")
    return cls(**read)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """ValueError naming the file."""
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # safetensors raises several classes for a wrong file
        raise ValueError(f"{path}: cannot load the weights: {error}") from error


def _load_weights(
    module: torch.nn.Module, state: dict[str, torch.Tensor], path: Path, shared: Sequence[str] = ()
) -> None:
    """Strict, but for names that share another's storage. ValueError naming file and tensors."""
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except Exception as error:  # torch raises several classes for tensors of other shapes
        raise ValueError(f"{path}: cannot load the weights: {error}") from error
    wrong = sorted(set(missing) - set(shared)) + sorted(unexpected)
    if wrong:
        raise ValueError(f"{path}: does not fit config.json, first at {wrong[0]} ({len(wrong)} in all)")


def _shared(config: BundleConfig) -> tuple[str, ...]:
    """Names of the unified model's state that share another's storage."""
    return ("head.weight",) if config.unified.tied else ()


@dataclass(frozen=True)
class Parts:
    """A model folder, loaded."""

    config: BundleConfig
    model: UnifiedModel
    tokenizer: VisualTokenizer | None
    text: TextTokenizer


def stored_state(model: UnifiedModel) -> dict[str, torch.Tensor]:
    """The unified model's state as its file has it."""
    return {key: value for key, value in model.state_dict().items() if not (model.config.tied and key == "head.weight")}


def write_folder(parts: Parts, folder: str | Path) -> None:
    """The folder is made if need be. A model without memory (torch's meta device) has its weights there already."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    states = {
        "unified": stored_state(parts.model),
        "tokenizer": parts.tokenizer.state_dict() if parts.tokenizer else {},
    }
    for name, state in states.items():
        if state and not any(value.is_meta for value in state.values()):
            kept = {key: value.detach().cpu().contiguous() for key, value in state.items()}
            save_file(kept, folder / f"{name}.safetensors")
    (folder / "text.json").write_text(parts.text.to_json(), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(document_of(parts), indent=2), encoding="utf-8")


def document_of(parts: Parts) -> dict[str, Any]:
    """The contents of `config.json`."""
    config = dataclasses.asdict(parts.config)
    if not config["sampling"]:
        del config["sampling"]  # as in the folders from before there was any
    return {"version": VERSION, "text_digest": parts.text.digest, **config}


def read_folder(folder: str | Path, device: str | torch.device = "cpu") -> Parts:
    """Read what `write_folder` wrote. ValueError naming the file and field that is wrong."""
    folder = Path(folder)
    try:
        document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'}: cannot read the model's config: {error}") from error
    unified, tokenizer = folder / "unified.safetensors", folder / "tokenizer.safetensors"
    return assemble(
        document,
        TextTokenizer.load(folder / "text.json"),
        (_read_weights(unified), unified),
        (_read_weights(tokenizer), tokenizer) if document.get("tokenizer") else None,
        device,
        (folder / "config.json", folder / "text.json"),
    )


def assemble(
    document: dict[str, Any],
    text: TextTokenizer,
    unified: tuple[dict[str, torch.Tensor], Path],
    visual: tuple[dict[str, torch.Tensor], Path] | None,
    device: str | torch.device,
    files: tuple[Path, Path],
) -> Parts:
    """The model of `document_of`'s values and of states, each with the file that it was read from; `files`: those of
    the config and of the text tokenizer. ValueError naming the file and field that is wrong."""
    own = dict(document)
    version, digest = own.pop("version", None), own.pop("text_digest", None)
    if version != VERSION:
        raise ValueError(f"{files[0]}: version: expected {VERSION}, got {version!r}")
    config = _from_dict(BundleConfig, own, str(files[0]))
    if text.digest != digest:
        raise ValueError(f"{files[1]}: not the tokenizer that the model was trained with")
    model, tokenizer = UnifiedModel(config.unified), None
    _load_weights(model, *unified, _shared(config))
    if config.tokenizer and visual:
        tokenizer = build_tokenizer(config.tokenizer).to(device)
        _load_weights(tokenizer, *visual)
    return Parts(config, model.to(device), tokenizer, text)
