"""How likely pictures are behind what stands before them. In: an objective whose predictions are distributions, of a
code (`next_code`) or of latents (`next_latent`), and documents with a picture each. Out: nats.

Shapes: B documents, N targets, L places of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from omniloom.models.unified.batch import Document, collate, document_length
from omniloom.models.unified.objectives.objective import UnifiedObjective

TIMES = 64  # of a position, at which the diffusion head's bound is estimated


@torch.no_grad()
def picture_nats(
    objective: UnifiedObjective, name: str, documents: Sequence[Document], seeds: Sequence[int], batch_size: int = 64
) -> Tensor:
    """-log p of the targets of the objective `name` in each document, float64 (B,), on the CPU: of codes their
    probability; of latents the density of their values under their noise, in units of the latents' deviations, or an
    upper bound where the head has no likelihood. `seeds`, one a document, are those of the noise. ValueError for an
    objective that has no likelihoods."""
    loss = objective.losses[name]
    if not hasattr(loss, "nats"):
        raise ValueError(f"{name}: its predictions are no distributions of what is drawn")
    device, found = objective.model.embed.weight.device, []
    for at in range(0, len(documents), batch_size):
        part = documents[at : at + batch_size]
        L = max(document_length(document) for document in part)
        batch = collate([[document] for document in part], L, objective.model.config, device.type).to(device)
        own_seeds = list(seeds[at : at + batch_size])
        shown = objective.show(batch, own_seeds) | {name: loss.show_bound(batch, own_seeds, TIMES)}
        predictions = objective.predict(batch, shown)[1]
        nats_N = loss.nats(predictions[name].float(), shown[name]).double().cpu()
        rows_N = shown[name].places.cpu() // L
        found.append(torch.zeros(len(part), dtype=torch.float64).index_add(0, rows_N, nats_N))
    return torch.cat([torch.zeros(0, dtype=torch.float64), *found])
