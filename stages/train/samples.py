"""The model as sampling uses it, and what a training draws with it to be looked at."""

from __future__ import annotations

from omniloom.infra.errors import InputError
from omniloom.models.model import BundleConfig, OmniLoom
from omniloom.models.text import TextTokenizer
from omniloom.models.unified.model import UnifiedModel
from omniloom.stages.checkpoints.tokenizer import load_tokenizer
from omniloom.stages.data.aspects import Aspects, ratio
from omniloom.stages.data.spread import spread
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.reporting.report import grid
from omniloom.stages.train.config import Config, SampleConfig
from omniloom.stages.train.job import Job


def with_tokenizers(model: UnifiedModel, job: Job, text: TextTokenizer, facts: dict) -> OmniLoom:
    """The model, which may be without memory (torch's meta device), with both tokenizers; a language model with its
    own. `facts` are those of the tokens."""
    config, tokenizer = job.config, job.tokenizer
    if not config.trained:
        bundle = BundleConfig(model.config, config.diffusion, None, (), (), None, objectives=())
        return OmniLoom(bundle, model, None, text)
    if tokenizer is None:
        raise InputError("pictures cannot be drawn without the visual tokenizer of the tokens", field="objectives")
    device = next(model.parameters()).device
    visual = load_tokenizer(tokenizer).to("cpu" if device.type == "meta" else device)
    bundle = BundleConfig(
        unified=model.config,
        diffusion=config.diffusion,
        tokenizer=visual.config,
        latent_mean=tuple(facts["latent_mean"]),
        latent_std=tuple(facts["latent_std"]),
        image_size=drawn_shape(facts, visual.config.patch_size),
        num_frames=facts["frames"],
        snap_latents=visual.codebook_size is not None,
        objectives=config.trained,
        pixel_diffusion=config.pixel_diffusion,
        pixel_patch=facts.get("pixel_patch"),
        sampling=job.distillation.sampling if job.distillation else {},
    )
    return OmniLoom(bundle, model, visual, text)


def drawn_shape(facts: dict, patch_size: int) -> tuple[int, int]:
    """(height, width) of what is drawn by default: a square if the tokens have any, else the first of their ratios;
    tokens from before there were ratios are of squares."""
    aspects = Aspects(tuple(facts.get("aspects", Aspects.names)), patch_size)
    square = next((bucket for bucket, name in enumerate(aspects.names) if ratio(name) == 1), 0)
    return aspects.shape(square, facts["image_size"])


def held_out_captions(held_out: TokenSet, text: TextTokenizer, config: Config) -> list[str]:
    """Captions that differ, of pictures drawn by the seed, evenly over sources and labels."""
    captions: dict[str, None] = {}
    for index in spread(held_out.table, ("source", "label"), config.seed, held_out.indices("image")):
        if len(captions) >= config.samples.count:
            break
        ids = next((token.text_ids for token in held_out.document(int(index)) if token.kind == "text"), ())
        if len(ids):
            captions.setdefault(text.decode(ids))
    return list(captions)


def draw(model: OmniLoom, captions: list[str], samples: SampleConfig, objective: str) -> bytes:
    """A picture of each caption, as one PNG."""
    return grid(list(model.text_to_image(captions, model.sampling(samples.chosen(objective=objective)))), 8, captions)
