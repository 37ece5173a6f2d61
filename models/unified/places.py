"""What the blocks are told of a pass's places beside their states, where an option of the backbone asks. In: where
pictures' positions lie, and the embedded times of their segments. Out: `Places`, of the whole pass, and `Modulation`,
of a block.

    modulation  adaLN-zero (DiT, arXiv 2212.09748, section 3.2): of each sub-layer x + gate * f(norm(x) * (1 + scale) +
                shift). The three are computed once a segment, from its diffusion time, and spread over its positions by
                index; at the start they are 0, so that a position of a picture passes a block as it is. Places of text
                and of codes, which have no time, have none: there a block is as without it, to the last bit
    experts     own norms, feed-forward and perhaps projections of pictures (Mixture-of-Transformers, arXiv 2411.04996):
                each place goes through those of its modality alone, which takes no more operations than one of both

Shapes: B rows, N places of a row that are fed; M positions of pictures, m of them with a time; R segments with a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from omniloom.models.unified.batch.tensors import VisualPart
from omniloom.models.unified.recurrence import Chain

Layer = Callable[[Tensor], Tensor]


@dataclass
class Modulation:
    """Of a block: table (R, 3 * sub-layers, D), of each sub-layer shift, scale and gate; index int64 (m,), the flat
    places b*N + i that are modulated, and row int64 (m,), by which row of the table each is."""

    table: Tensor
    index: Tensor
    row: Tensor

    def enter(self, x: Tensor, sublayer: int) -> Tensor:
        """(B, N, D), normed, into the sub-layer of that number."""
        shift, scale = (self._spread(3 * sublayer + which) for which in range(2))
        return self._changed(x, lambda x_mD: x_mD * (1 + scale) + shift)

    def leave(self, x: Tensor, sublayer: int) -> Tensor:
        """What the sub-layer gave, (B, N, D), as it is added to the states."""
        return self._changed(x, lambda x_mD: x_mD * self._spread(3 * sublayer + 2))

    def _spread(self, which: int) -> Tensor:
        return self.table[:, which].index_select(0, self.row)

    def _changed(self, x: Tensor, change: Layer) -> Tensor:
        flat = x.flatten(0, 1)
        changed = change(flat.index_select(0, self.index)).to(x.dtype)
        return flat.index_copy(0, self.index, changed).view_as(x)


@dataclass
class Places:
    """Of a pass: which flat places b*N + i are pictures', bool (B*N,); text's places and pictures', int64 each; `back`,
    int64 (B*N,), where each place stands among the first and then the second. Of those with a time, as in `Modulation`:
    times (R, D), embedded, index and row. The chain of a recurrence. What no option asks for is None."""

    pictures: Tensor | None = None
    text: Tensor | None = None
    visual: Tensor | None = None
    back: Tensor | None = None
    times: Tensor | None = None
    index: Tensor | None = None
    row: Tensor | None = None
    chain: Chain | None = None

    def split(self, x: Tensor, text: Layer, visual: Layer) -> Tensor:
        """(B, N, D) -> (B, N, ...): each place through the layer of its modality. Both are called, whatever there
        is."""
        if self.text is None or self.visual is None or self.back is None:
            return text(x)
        flat = x.flatten(0, 1)
        made = torch.cat((text(flat.index_select(0, self.text)), visual(flat.index_select(0, self.visual))))
        return made.index_select(0, self.back).view(*x.shape[:2], -1)


def places_of(
    parts: Mapping[str, VisualPart], times: Mapping[str, Tensor], count: int, device: torch.device, *, experts: bool
) -> Places:
    """Of `count` = B*N places. times: embedded, (segments, D), of representations that have some; without any nothing
    is modulated. experts: whether modalities are told apart."""
    here = {name: part.here.places if part.here else part.index for name, part in parts.items()}
    pictures = torch.zeros(count, dtype=torch.bool, device=device)
    for index in here.values():
        pictures.index_fill_(0, index, True)
    places = Places(pictures)
    if experts:
        visual = torch.cat([*here.values()])
        # Of a stable sort text comes first, in its order: as many as the host knows, without waiting for the device.
        places.text, places.visual = pictures.byte().argsort(stable=True)[: count - len(visual)], visual
        order = torch.cat((places.text, visual))
        places.back = torch.empty_like(order).index_copy_(0, order, torch.arange(count, device=device))
    if times:
        rows, before = [], 0
        for name, embedded in times.items():
            part = parts[name]
            segment = part.segment.index_select(0, part.here.rows) if part.here else part.segment
            rows.append(segment + before)
            before += len(embedded)
        places.times = torch.cat([*times.values()])
        places.index, places.row = torch.cat([here[name] for name in times]), torch.cat(rows)
    return places
