"""A trained model as one folder, and what it does. In: a folder, or the parts that training made. Out:
pictures from text, text from pictures, text from text.

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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.text import TextTokenizer
from models.tokenizer.build import AnyTokenizerConfig, build_tokenizer, config_from_dict
from models.unified.config import UnifiedConfig
from models.unified.diffusion_config import PIXEL_DIFFUSION, DiffusionConfig
from models.unified.generate import Seeds, generate_text, generate_visual, seed_list
from models.unified.layouts import prefix_for_text, prefix_for_visual
from models.unified.model import UnifiedModel
from models.unified.patches import patches_to_pixels, pixels_to_patches
from models.unified.positions import Grid
from models.unified.representations import objective_row, patch_numbers

if TYPE_CHECKING:
    from models.tokenizer.base import VisualTokenizer

VERSION = 1


@dataclass(frozen=True)
class BundleConfig:
    """What `config.json` says.

    tokenizer                of pictures; None, with what follows up to `objectives`, in a model of text alone
    latent_mean, latent_std  per channel of the tokenizer's latents; the unified model sees
                             (latent - mean) / std
    image_size               (height, width) in pixels that training used, and sampling uses by default
    num_frames, fps          of videos
    snap_latents             move sampled latents to their nearest code before decoding; KL has none
    objectives               what was trained on pictures; sampling uses the first where none is asked for
    pixel_diffusion          of raw pixels; pixel_patch: side of their square patches
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

    def __post_init__(self) -> None:
        for name in ("latent_mean", "latent_std", "image_size", "objectives"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("tokenizer", "image_size"):
            if self.objectives and getattr(self, name) is None:
                raise ValueError(f"BundleConfig.{name}: is missing, and {self.objectives[0]} needs it")
        if self.tokenizer is None:
            return
        channels = self.tokenizer.latent_dim
        for name in ("latent_mean", "latent_std"):
            if len(getattr(self, name)) != channels:
                raise ValueError(
                    f"BundleConfig.{name}: expected {channels} values, one a channel, "
                    f"got {len(getattr(self, name))}"
                )
        if not all(value > 0 for value in self.latent_std):
            raise ValueError(f"BundleConfig.latent_std: expected positive numbers, got {self.latent_std}")
        sizes = {
            "latent_dim": channels, "codebook_size": self.tokenizer.codebook_size,
            "pixel_dim": self.pixel_patch and patch_numbers(self.pixel_patch),
        }
        for name in self.objectives:
            size = objective_row(name).representation.size
            if getattr(self.unified, size) is None or getattr(self.unified, size) != sizes[size]:
                raise ValueError(
                    f"BundleConfig.objectives: {name} needs {size} {sizes[size]}, unified.{size} is "
                    f"{getattr(self.unified, size)}"
                )


def _from_dict(cls: type, values: Any, where: str) -> Any:
    """Rebuild nested frozen dataclasses from JSON. ValueError naming an unknown or missing field."""
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected an object, got {values!r}")
    hints, known = get_type_hints(cls), {f.name: f for f in dataclasses.fields(cls)}
    for name in values:
        if name not in known:
            raise ValueError(f"{where}.{name}: unknown field")
    for name, field in known.items():
        absent = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if absent and name not in values:
            raise ValueError(f"{where}.{name}: missing")
    read = dict(values)
    for name, value in values.items():
        if name == "tokenizer" and value is not None:
            read[name] = config_from_dict(value, f"{where}.{name}")
        elif dataclasses.is_dataclass(hints[name]):
            read[name] = _from_dict(hints[name], value, f"{where}.{name}")
    return cls(**read)


def _load_weights(module: torch.nn.Module, path: Path, shared: Sequence[str] = ()) -> None:
    """Strict, but for names that share another's storage. ValueError naming file and tensors."""
    from safetensors.torch import load_file

    try:
        state = load_file(path)
        missing, unexpected = module.load_state_dict(state, strict=False)
    except Exception as error:  # safetensors and torch each raise several classes for a wrong file
        raise ValueError(f"{path}: cannot load the weights: {error}") from error
    wrong = sorted(set(missing) - set(shared)) + sorted(unexpected)
    if wrong:
        raise ValueError(f"{path}: does not fit config.json, first at {wrong[0]} ({len(wrong)} in all)")


def _shared(config: BundleConfig) -> tuple[str, ...]:
    """Names of the unified model's state that share another's storage."""
    return ("head.weight",) if config.unified.tied else ()


def to_pixels(images: Sequence[np.ndarray | Tensor], size: tuple[int, int]) -> Tensor:
    """uint8 images (H, W, 3) of any sizes -> float32 (B, 3, *size) in [-0.5, 0.5], scaled to cover `size` and
    cut at the centre."""
    rows = []
    for index, image in enumerate(images):
        x = torch.as_tensor(np.array(image))
        if x.ndim != 3 or x.shape[2] != 3 or x.dtype != torch.uint8:
            raise ValueError(f"images[{index}]: expected uint8 (H, W, 3), got {x.dtype} {tuple(x.shape)}")
        x = x.permute(2, 0, 1)[None].float()
        scale = max(size[0] / x.shape[2], size[1] / x.shape[3])
        inner = tuple(max(s, round(n * scale)) for s, n in zip(size, x.shape[2:]))
        if inner != tuple(x.shape[2:]):
            x = F.interpolate(x, size=inner, mode="bilinear", antialias=True, align_corners=False)
        top, left = (inner[0] - size[0]) // 2, (inner[1] - size[1]) // 2
        rows.append(x[0, :, top : top + size[0], left : left + size[1]])
    return torch.stack(rows) / 255 - 0.5


def to_uint8(pixels: Tensor) -> np.ndarray:
    """Pixels about [-0.5, 0.5], channels at axis 1 -> uint8 with channels last."""
    return ((pixels.float() + 0.5) * 255).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).cpu().numpy()


class OmniLoom:
    """A model and its tokenizers, of pictures None where it knows text alone, ready to sample. `batch_size` bounds the
    requests computed at once; it does not change what a seed gives."""

    def __init__(
        self,
        config: BundleConfig,
        model: UnifiedModel,
        tokenizer: VisualTokenizer | None,
        text: TextTokenizer,
        batch_size: int = 64,
    ):
        if text.vocab_size > config.unified.vocab_size:
            raise ValueError(
                f"text.json: {text.vocab_size} tokens, unified.vocab_size is {config.unified.vocab_size}"
            )
        if text.specials != dataclasses.asdict(config.unified.specials):
            raise ValueError(f"text.json: special tokens {text.specials} are not those of unified.specials")
        self.config, self.model, self.text = config, model.eval(), text
        self.tokenizer = tokenizer and tokenizer.eval()
        self.batch_size = batch_size
        self._mean = torch.tensor(config.latent_mean).view(-1, 1, 1, 1)
        self._std = torch.tensor(config.latent_std).view(-1, 1, 1, 1)

    def save(self, folder: str | Path) -> None:
        """Write the folder; it is made if need be."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, module in (("unified", self.model), ("tokenizer", self.tokenizer)):
            if module is None:
                continue
            state = {
                key: value.detach().cpu().contiguous()
                for key, value in module.state_dict().items()
                if not (module is self.model and key in _shared(self.config))
            }
            save_file(state, folder / f"{name}.safetensors")
        (folder / "text.json").write_text(self.text.to_json(), encoding="utf-8")
        document = {"version": VERSION, "text_digest": self.text.digest, **dataclasses.asdict(self.config)}
        (folder / "config.json").write_text(json.dumps(document, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> OmniLoom:
        """Read a folder that `save` wrote. ValueError naming the file and field that is wrong."""
        folder = Path(folder)
        try:
            document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / 'config.json'}: cannot read the model's config: {error}") from error
        version, digest = document.pop("version", None), document.pop("text_digest", None)
        if version != VERSION:
            raise ValueError(f"{folder / 'config.json'}: version: expected {VERSION}, got {version!r}")
        config = _from_dict(BundleConfig, document, str(folder / "config.json"))
        text = TextTokenizer.load(folder / "text.json")
        if text.digest != digest:
            raise ValueError(f"{folder / 'text.json'}: not the tokenizer that the model was trained with")
        model, tokenizer = UnifiedModel(config.unified), None
        _load_weights(model, folder / "unified.safetensors", _shared(config))
        if config.tokenizer:
            tokenizer = build_tokenizer(config.tokenizer).to(device)
            _load_weights(tokenizer, folder / "tokenizer.safetensors")
        return cls(config, model.to(device), tokenizer, text)

    @property
    def device(self) -> torch.device:
        return self.model.embed.weight.device

    def _objective(self, objective: str | None) -> str:
        if not self.config.objectives:
            raise ValueError("objective: the model was trained on text alone and knows no pictures")
        if objective is not None and objective not in self.config.objectives:
            raise ValueError(f"objective: expected one of {', '.join(self.config.objectives)}, got {objective!r}")
        return objective or self.config.objectives[0]

    def grid(self, num_frames: int, height: int, width: int, objective: str | None = None) -> Grid:
        """(t, h, w) of a clip as the objective sees it; ValueError where the clip does not fit it."""
        if objective_row(self._objective(objective)).representation.name != "pixels":
            return self.tokenizer.grid(num_frames, height, width)
        patch = self.config.pixel_patch
        if height % patch or width % patch:
            raise ValueError(f"pixels: height and width must be multiples of {patch}, got {height}x{width}")
        return num_frames, height // patch, width // patch

    @torch.no_grad()
    def encode(self, pixels: Tensor, objective: str | None = None) -> np.ndarray:
        """Pixels (B, 3, H, W) or (B, 3, T, H, W) in [-0.5, 0.5] -> what the objective shows as context: normalised
        latents or patches of pixels, float32 (B, t, h, w, C), or codes, int64 (B, t, h, w)."""
        kind = objective_row(self._objective(objective)).representation.name
        if kind == "pixels":
            clips = pixels if pixels.ndim == 5 else pixels[:, :, None]
            return pixels_to_patches(clips, self.config.pixel_patch).numpy()
        encoded = self.tokenizer.encode(pixels.to(self.device))
        if kind == "codes":
            return encoded.codes.cpu().numpy()
        return ((encoded.latents.float().cpu() - self._mean) / self._std).movedim(1, -1).contiguous().numpy()

    @torch.no_grad()
    def decode(self, values: Tensor, objective: str | None = None) -> np.ndarray:
        """What `encode` gives, as a tensor -> uint8 (B, T, H, W, 3)."""
        kind = objective_row(self._objective(objective)).representation.name
        if kind == "pixels":
            return to_uint8(patches_to_pixels(values.float().cpu(), self.config.pixel_patch))
        if kind == "codes":
            return to_uint8(self.tokenizer.decode(values.to(self.device)))
        raw = values.float().cpu().movedim(-1, 1) * self._std + self._mean
        return to_uint8(self.tokenizer.decode(latents=raw.to(self.device), quantize=self.config.snap_latents))

    def text_to_video(
        self,
        prompts: Sequence[str],
        num_frames: int | None = None,
        size: tuple[int, int] | None = None,
        num_steps: int = 20,
        guidance_scale: float = 2.0,
        seeds: Seeds = 0,
        sampler: str = "euler",
        objective: str | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> np.ndarray:
        """Videos uint8 (B, T, H, W, 3). size (height, width) in pixels and num_frames default to training's;
        an empty prompt draws without a condition. seeds: one a prompt, or an int that counts up. objective: one that
        was trained, the first by default; temperature, top_k, top_p: of those on codes."""
        objective = self._objective(objective)
        height, width = size or self.config.image_size
        pixels = objective_row(objective).representation.name == "pixels"
        grid = self.grid(num_frames or self.config.num_frames, height, width, objective)
        special, seeds = self.config.unified.specials, seed_list(seeds, len(prompts))
        prefixes = [prefix_for_visual(self.text.encode(prompt), special) for prompt in prompts]
        made = []
        for at in range(0, len(prompts), self.batch_size):
            part = slice(at, at + self.batch_size)
            values = generate_visual(
                self.model,
                prefixes[part],
                grid,
                diffusion=self.config.pixel_diffusion if pixels else self.config.diffusion,
                num_steps=num_steps,
                guidance_scale=guidance_scale,
                sampler=sampler,
                seeds=seeds[part],
                objective=objective,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
            )
            made.append(self.decode(values, objective))
        return np.concatenate(made) if made else np.zeros((0, 1, height, width, 3), np.uint8)

    def text_to_image(self, prompts: Sequence[str], size: tuple[int, int] | None = None, **drawing: Any) -> np.ndarray:
        """Images uint8 (B, H, W, 3); `text_to_video` of one frame, with its other arguments."""
        return self.text_to_video(prompts, 1, size, **drawing)[:, 0]

    def image_to_text(
        self,
        images: Sequence[np.ndarray],
        prompt: str = "",
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seeds: Seeds = 0,
        size: tuple[int, int] | None = None,
        objective: str | None = None,
    ) -> list[str]:
        """Captions of uint8 images (H, W, 3), each scaled to cover `size` and cut at the centre; `prompt`
        stands between the picture and its caption. objective: in whose way the pictures are shown, one that was
        trained, the first by default."""
        ids, special, objective = self.text.encode(prompt), self.config.unified.specials, self._objective(objective)

        def prefixes(part: slice) -> list:
            values = self.encode(to_pixels(images[part], size or self.config.image_size), objective)
            grid = values.shape[1:4]
            return [
                prefix_for_text(ids, special, x.reshape(-1, *x.shape[3:]), grid, objective=objective) for x in values
            ]

        return self._write(len(images), prefixes, max_new_tokens, temperature, top_k, top_p, seeds)

    def text_to_text(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seeds: Seeds = 0,
    ) -> list[str]:
        """Continuations of the prompts, the prompts left out."""
        special = self.config.unified.specials

        def prefixes(part: slice) -> list:
            return [prefix_for_text(self.text.encode(prompt), special) for prompt in prompts[part]]

        return self._write(len(prompts), prefixes, max_new_tokens, temperature, top_k, top_p, seeds)

    def _write(
        self,
        count: int,
        prefixes: Any,
        max_new_tokens: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        seeds: Seeds,
    ) -> list[str]:
        seeds, texts = seed_list(seeds, count), []
        for at in range(0, count, self.batch_size):
            part = slice(at, at + self.batch_size)
            made = generate_text(
                self.model,
                prefixes(part),
                max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seeds=seeds[part],
            )
            texts += [self.text.decode(ids) for ids in made]
        return texts
