"""A trained model and what it does. In: a folder (`models.folder`), or the parts that training made; prompts and
uint8 pictures. Out: pictures, videos, text, or all of them in turn.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from omniloom.models.folder import BundleConfig, Parts, read_folder, write_folder
from omniloom.models.patches import patches_to_pixels, pixels_to_patches
from omniloom.models.pixels import full_to_half, half_to_full, to_pixels, to_uint8
from omniloom.models.text import TextTokenizer
from omniloom.models.unified.batch import Document, Segment, visual_segment
from omniloom.models.unified.diffusion.amed import AmedPredictor
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.diffusion.samplers import MidpointPredictor
from omniloom.models.unified.generation.draw import check_drawing
from omniloom.models.unified.generation.generate import (
    Drawing,
    Seeds,
    generate_interleaved,
    generate_text,
    generate_visual,
    seed_list,
)
from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling
from omniloom.models.unified.layouts import prefix
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.positions import Grid
from omniloom.models.unified.representations import objective_row

if TYPE_CHECKING:
    from omniloom.models.tokenizer.base import VisualTokenizer

__all__ = ["BundleConfig", "OmniLoom", "TextSampling", "VisualSampling", "to_pixels", "to_uint8"]

Pictures = Sequence[Sequence[np.ndarray]]  # for each request those that stand before its prompt, uint8 (H, W, 3)


# Of width 128 a megabyte a tensor: drawing 64 pictures of 64 positions takes 1.18 times as long at four times as many.
_CACHED_TOKENS = 2048


class OmniLoom:
    """A model and its tokenizers, of pictures None where it knows text alone, ready to sample. `batch_size` bounds the
    requests computed at once; it does not change what a seed gives.

    What its tasks share:
        text     how text is written
        visual   how pictures are drawn, by default as `usual` says, and in which size and by which objective those
                 before a prompt are shown; what it leaves open is the model's own
        images   for each prompt the pictures that are shown before it, each scaled to cover `visual.size` and cut at
                 the centre
        seeds    one a request, or an int that counts up
    """

    def __init__(
        self,
        config: BundleConfig,
        model: UnifiedModel,
        tokenizer: VisualTokenizer | None,
        text: TextTokenizer,
        batch_size: int = 64,
    ):
        if text.vocab_size > config.unified.vocab_size:
            raise ValueError(f"text.json: {text.vocab_size} tokens, unified.vocab_size is {config.unified.vocab_size}")
        if text.specials != dataclasses.asdict(config.unified.specials):
            raise ValueError(f"text.json: special tokens {text.specials} are not those of unified.specials")
        self.config, self.model, self.text = config, model.eval(), text
        self.tokenizer = tokenizer and tokenizer.eval()
        self.batch_size = batch_size
        self._mean = torch.tensor(config.latent_mean).view(-1, 1, 1, 1)
        self._std = torch.tensor(config.latent_std).view(-1, 1, 1, 1)

    def save(self, folder: str | Path) -> None:
        """Write the folder; it is made if need be."""
        write_folder(Parts(self.config, self.model, self.tokenizer, self.text), folder)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> OmniLoom:
        """Read a folder that `save` wrote. ValueError naming the file and field that is wrong."""
        parts = read_folder(folder, device)
        return cls(parts.config, parts.model, parts.tokenizer, parts.text)

    @property
    def device(self) -> torch.device:
        return self.model.embed.weight.device

    def _objective(self, objective: str | None) -> str:
        if not self.config.objectives:
            raise ValueError("objective: the model was trained on text alone and knows no pictures")
        if objective is not None and objective not in self.config.objectives:
            raise ValueError(f"objective: expected one of {', '.join(self.config.objectives)}, got {objective!r}")
        return objective or self.config.objectives[0]

    def sampling(self, chosen: Mapping[str, Any]) -> VisualSampling:
        """Chosen fields, and the model's own defaults of what they leave open; these are of its first objective."""
        objective = chosen.get("objective")
        own = self.config.sampling if objective in (None, *self.config.objectives[:1]) else {}
        return VisualSampling(**{**own, **chosen})

    @property
    def usual(self) -> VisualSampling:
        """How it draws where nothing is chosen."""
        return self.sampling({})

    @property
    def visual_tokenizer(self) -> VisualTokenizer:
        """`tokenizer`; ValueError where the model knows text alone."""
        if self.tokenizer is None:
            raise ValueError("tokenizer: the model was trained on text alone and has none of pictures")
        return self.tokenizer

    def _pixel_patch(self) -> int:
        if self.config.pixel_patch is None:
            raise ValueError("pixel_patch: the model was not trained on pixels and has none")
        return self.config.pixel_patch

    def size_of(self, visual: VisualSampling) -> tuple[int, int]:
        """(height, width) in pixels of what is drawn and shown; ValueError where the model knows text alone."""
        size = visual.size or self.config.image_size
        if size is None:
            raise ValueError("size: the model was trained on text alone and has none of its own")
        return size

    def _frames(self, visual: VisualSampling) -> int:
        return visual.num_frames or self.config.num_frames

    def diffusion(self, objective: str | None = None) -> DiffusionConfig | None:
        """The diffusion that the objective was trained with; None for an objective that has none."""
        row, density = objective_row(self._objective(objective)), self.config.unified.density
        if not row.is_diffusion and not (row.by_density and density and density.head == "diffusion"):
            return None
        return self.config.pixel_diffusion if row.representation.name == "pixels" else self.config.diffusion

    def resolve(self, visual: VisualSampling) -> VisualSampling:
        """`visual` with what it leaves to the model filled in, and a predictor's file read. ValueError naming the field
        that does not fit the model."""
        objective = self._objective(visual.objective)
        size = self.size_of(visual)
        for field, frames in (("size", 1), ("num_frames", visual.num_frames or 1)):
            try:
                self.grid(frames, *size, objective)
            except ValueError as error:
                raise ValueError(f"{field}: does not fit the model: {error}") from None
        diffusion = self.diffusion(objective)
        resolved = dataclasses.replace(
            visual,
            objective=objective,
            size=size,
            num_frames=self._frames(visual),
            predictor=_predictor(visual, objective, diffusion),
            diffusion=diffusion,
        )
        check_drawing(self.config.unified, resolved)
        return resolved

    def grid(self, num_frames: int, height: int, width: int, objective: str | None = None) -> Grid:
        """(t, h, w) of a clip as the objective sees it; ValueError where the clip does not fit it."""
        if objective_row(self._objective(objective)).representation.name != "pixels":
            return self.visual_tokenizer.grid(num_frames, height, width)
        patch = self._pixel_patch()
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
            return pixels_to_patches(half_to_full(clips.float()), self._pixel_patch()).numpy()
        encoded = self.visual_tokenizer.encode(pixels.to(self.device))
        if kind == "codes":
            return encoded.codes.cpu().numpy()
        return ((encoded.latents.float().cpu() - self._mean) / self._std).movedim(1, -1).contiguous().numpy()

    @torch.no_grad()
    def decode(self, values: Tensor, objective: str | None = None) -> np.ndarray:
        """Decode the tensor that `encode` gives to uint8 (B, T, H, W, 3)."""
        kind = objective_row(self._objective(objective)).representation.name
        if kind == "pixels":
            return to_uint8(full_to_half(patches_to_pixels(values.float().cpu(), self._pixel_patch())))
        if kind == "codes":
            return to_uint8(self.visual_tokenizer.decode(values.to(self.device)))
        raw = values.float().cpu().movedim(-1, 1) * self._std + self._mean
        return to_uint8(self.visual_tokenizer.decode(latents=raw.to(self.device), quantize=self.config.snap_latents))

    def prefixes(
        self, prompts: Sequence[str], images: Pictures | None = None, visual: VisualSampling | None = None
    ) -> list[Document]:
        """The segments that generation continues."""
        visual = visual or self.usual
        images = [()] * len(prompts) if images is None else images
        if len(images) != len(prompts):
            raise ValueError(f"images: expected {len(prompts)} lists of pictures, one a prompt, got {len(images)}")
        shown = iter(self._shown([picture for pictures in images for picture in pictures], visual))
        special = self.config.unified.specials
        return [
            prefix(self.text.encode(prompt), special, [next(shown) for _ in pictures])
            for prompt, pictures in zip(prompts, images)
        ]

    def _shown(self, images: Sequence[np.ndarray], visual: VisualSampling) -> list[Segment]:
        if not images:  # of a model of text alone there are none, which knows neither objectives nor sizes
            return []
        objective = self._objective(visual.objective)
        values = self.encode(to_pixels(images, self.size_of(visual)), objective)
        t, h, w = values.shape[1:4]
        return [visual_segment(objective, x.reshape(-1, *x.shape[3:]), (t, h, w), loss=False) for x in values]

    def _parts(self, count: int, tokens: int = 1) -> Iterator[slice]:
        """`tokens`: of a request, that are computed together. On a CPU more than stay in its caches at once cost more
        than a further pass."""
        most = self.batch_size
        if next(self.model.parameters()).device.type == "cpu":
            most = max(1, min(most, _CACHED_TOKENS // tokens))
        for at in range(0, count, most):
            yield slice(at, at + most)

    def text_to_video(
        self,
        prompts: Sequence[str],
        visual: VisualSampling | None = None,
        *,
        images: Pictures | None = None,
        seeds: Seeds = 0,
    ) -> np.ndarray:
        """Videos uint8 (B, T, H, W, 3). An empty prompt without images draws without a condition."""
        visual = self.resolve(visual or self.usual)
        size = self.size_of(visual)
        grid = self.grid(self._frames(visual), *size, visual.objective)
        seeds = seed_list(seeds, len(prompts))
        made = []
        for part in self._parts(len(prompts), 2 * math.prod(grid)):  # with and without the prompt
            prefixes = self.prefixes(prompts[part], images and images[part], visual)
            values = generate_visual(self.model, prefixes, grid, visual, seeds[part])
            made.append(self.decode(values, visual.objective))
        return np.concatenate(made) if made else np.zeros((0, 1, *size, 3), np.uint8)

    def text_to_image(
        self,
        prompts: Sequence[str],
        visual: VisualSampling | None = None,
        *,
        images: Pictures | None = None,
        seeds: Seeds = 0,
    ) -> np.ndarray:
        """Images uint8 (B, H, W, 3); `text_to_video` of one frame."""
        visual = visual or self.usual
        return self.text_to_video(prompts, dataclasses.replace(visual, num_frames=1), images=images, seeds=seeds)[:, 0]

    def image_to_text(
        self,
        images: Sequence[np.ndarray],
        prompt: str = "",
        text: TextSampling = TextSampling(),
        visual: VisualSampling | None = None,
        *,
        seeds: Seeds = 0,
    ) -> list[str]:
        """Captions, one an image; `prompt` stands between the picture and its caption. `text_to_text` with one
        image each."""
        prompts = [prompt] * len(images)
        return self.text_to_text(prompts, text, visual, images=[[image] for image in images], seeds=seeds)

    def text_to_text(
        self,
        prompts: Sequence[str],
        text: TextSampling = TextSampling(),
        visual: VisualSampling | None = None,
        *,
        images: Pictures | None = None,
        seeds: Seeds = 0,
    ) -> list[str]:
        """Continuations of the prompts, the prompts left out; `visual` says how the images are shown."""
        seeds, texts = seed_list(seeds, len(prompts)), []
        for part in self._parts(len(prompts)):
            prefixes = self.prefixes(prompts[part], images and images[part], visual)
            written = generate_text(self.model, prefixes, text, seeds=seeds[part])
            texts += [
                self.text.continuation(self.text.encode(prompt), ids) for prompt, ids in zip(prompts[part], written)
            ]
        return texts

    def interleaved(
        self,
        prompts: Sequence[str],
        text: TextSampling = TextSampling(),
        visual: VisualSampling | None = None,
        *,
        images: Pictures | None = None,
        seeds: Seeds = 0,
        max_visuals: int = 4,
    ) -> list[list[str | np.ndarray]]:
        """Text and pictures in turn, as the model opens them, behind each prompt: text, images uint8 (H, W, 3) and
        videos (T, H, W, 3), at most `max_visuals` a request."""
        visual = self.resolve(visual or self.usual)
        drawing = self.drawing(visual, max_visuals)
        seeds, made = seed_list(seeds, len(prompts)), []
        for part in self._parts(len(prompts)):
            prefixes = self.prefixes(prompts[part], images and images[part], visual)
            made += generate_interleaved(self.model, prefixes, text, drawing, seeds=seeds[part])
        # Text behind the prompt goes on from it; text behind a picture was encoded by itself.
        return [
            [self.told(segment, () if number else self.text.encode(prompt)) for number, segment in enumerate(segments)]
            for prompt, segments in zip(prompts, made)
        ]

    def drawing(self, visual: VisualSampling, max_visuals: int = 4) -> Drawing:
        """How pictures between texts are drawn by a `visual` of `resolve`; without videos where it has one frame."""
        frames = self._frames(visual)
        image, video = (self.grid(count, *self.size_of(visual), visual.objective) for count in (1, frames))
        return Drawing(visual, image, video if frames > 1 else None, max_visuals)

    def told(self, segment: Segment, before: Sequence[int]) -> str | np.ndarray:
        """A segment that was generated, as text behind the ids `before`, or as an image (H, W, 3) or video."""
        if segment.kind == "text":
            return self.text.continuation(before, segment.text_ids.tolist())
        values = segment.values.reshape(1, *segment.visual_grid, *segment.values.shape[1:])
        clip = self.decode(torch.from_numpy(values), segment.objective)[0]
        return clip if len(clip) > 1 else clip[0]


def _predictor(visual: VisualSampling, objective: str, diffusion: DiffusionConfig | None) -> MidpointPredictor | None:
    """The predictor of the sampler amed, read where it is a file. ValueError where it is not for this diffusion."""
    if visual.predictor is None:
        return None
    if diffusion is None:
        raise ValueError(f"sampler: {objective} is no diffusion, which {visual.sampler} is for")
    predictor = visual.predictor
    if not isinstance(predictor, MidpointPredictor):
        try:
            predictor = AmedPredictor.load(predictor)
        except ValueError as error:
            raise ValueError(f"predictor: {error}") from None
    if isinstance(predictor, AmedPredictor):
        predictor.check(diffusion)
    return predictor
