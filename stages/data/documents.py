"""A placed document of the plan as the model's segments. In: a `stages.data.tokens.TokenSet` and
`stages.data.packing.Placed`. Out: lists of `models.unified.batch.Segment`, of the length that was planned.

    text       a piece of <bos> text <eos>
    draw       a caption, then the picture that is drawn        describe   the picture, then a caption of it
    document   text and pictures in turn, up to the picture that is drawn, or all that was planned where none is
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.representations import OBJECTIVES
from omniloom.stages.data.packing import Placed, Task

Seed = tuple[int, ...]
_POSTERIOR = 7  # apart from what else is drawn by the row's seed


class Documents:
    """`segments(placed, seed)` of one token set; they weigh as much as `task_weights` says of their view. With
    `features` the targets of diffusions have those that the tokens hold of them.

    Where the tokens hold log-variances, latents are drawn from the posterior: what is drawn for a picture is a function
    of the seed, which is that of the row's noise, of the document and of the picture's place in it. Without a seed they
    are its mean.
    """

    def __init__(
        self,
        tokens,
        model_config: UnifiedConfig,
        task_weights: Mapping[Task, float] = MappingProxyType({}),
        features: bool = False,
    ):
        self.tokens, self.specials, self.task_weights = tokens, model_config.specials, task_weights
        self.features = features
        self.mean = np.array(tokens.facts["latent_mean"], dtype=np.float32)
        self.std = np.array(tokens.facts["latent_std"], dtype=np.float32)

    def picture(self, token, objective: str, seed: Seed | None = None) -> tuple:
        """Values and grid of a visual token, as the objective is about them."""
        kind = OBJECTIVES[objective].representation.name
        if kind == "latents":
            return (_drawn(token, seed) - self.mean) / self.std, token.grid
        if kind == "codes":
            return token.codes, token.grid
        from omniloom.models.pixels import full_range

        return full_range(token.pixels.astype("float32")), token.pixel_grid

    def segments(self, placed: Placed, seed: int | None = None) -> list:
        found = self._arranged(placed, seed)
        for segment in found:
            segment.weight = self.task_weights.get(placed.view, 1.0)
            if self.features and segment.kind == "visual" and segment.loss:
                segment.features = self._features(placed, segment.grid)
        return found

    def _features(self, placed: Placed, grid: tuple[int, int, int]) -> np.ndarray | None:
        """Features (n, F) of the drawn picture on its segment's grid; None where the tokens hold none."""
        import torch

        from omniloom.models.unified.objectives.alignment import features_on_grid

        document = self.tokens.document(placed.index)
        token = document[placed.target] if placed.view == "document" else _first_picture(document)
        if token.features is None or not OBJECTIVES[placed.objective].is_diffusion:
            return None
        return features_on_grid(torch.from_numpy(token.features.copy()), token.feature_grid, grid).numpy()

    def _arranged(self, placed: Placed, seed: int | None) -> list:
        from omniloom.models.unified.batch import Segment
        from omniloom.models.unified.layouts import text_to_visual, visual_to_text

        document = self.tokens.document(placed.index)
        special = self.specials
        if placed.view == "text":
            ids = np.concatenate([[special.bos], document[0].ids, [special.eos]])[placed.start : placed.stop]
            return [Segment("text", ids=ids)]
        if placed.view == "document":
            return self._interleaved(document, placed, seed)
        captions = [token.ids for token in document if token.kind == "text"]
        caption = np.asarray(captions[placed.caption] if captions else [], np.int64)
        objective = placed.objective
        values, grid = self.picture(_first_picture(document), objective, _of(seed, placed, 0))
        if placed.view == "describe":
            return visual_to_text(values, grid, caption, special, objective, placed.context_time)
        condition = caption[:0] if "text" in placed.dropped else caption
        return text_to_visual(condition, values, grid, special, placed.caption_loss, objective)

    def _interleaved(self, document: list, placed: Placed, seed: int | None) -> list:
        from omniloom.models.unified.batch import Segment, document_length, visual_segment
        from omniloom.models.unified.layouts import without

        segments = [Segment("text", ids=np.array([self.specials.bos]))]
        for number, token in enumerate(document[: placed.stop]):
            if token.kind == "text":
                segments.append(Segment("text", ids=token.ids))
                continue
            loss = number == placed.target
            if loss:
                segments = without(segments, placed.dropped, self.specials)
            values, grid = self.picture(token, placed.objective, _of(seed, placed, number))
            time = None if loss else placed.context_time
            segments.append(visual_segment(placed.objective, values, grid, loss, time))
        if placed.target >= 0:
            return segments
        room = placed.length - document_length(segments)
        if room < 0:  # a row ends inside the last text
            segments[-1] = Segment("text", ids=segments[-1].text_ids[:room])
        elif room > 0:
            segments.append(Segment("text", ids=np.array([self.specials.eos])))
        return segments


def _of(seed: int | None, placed: Placed, number: int) -> Seed | None:
    """The seed of one of a document's pictures in a row of this seed."""
    return None if seed is None else (seed, _POSTERIOR, placed.index, number)


def _drawn(token, seed: Seed | None) -> np.ndarray:
    """A picture's latents (n, C): drawn where their distribution is known and there is a seed."""
    if token.log_variances is None or seed is None:
        return token.latents
    noise = np.random.default_rng(seed).standard_normal(token.latents.shape, np.float32)
    return token.latents + np.exp(0.5 * token.log_variances) * noise


def _first_picture(document: list):
    return next(token for token in document if token.kind == "visual")
