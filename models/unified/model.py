"""The unified transformer: a Llama-shaped decoder over packed text and visual positions. In: a `Batch`, and for each
representation of pictures the values that the network sees and one diffusion time a segment. Out: vocabulary logits at
the places that have a label, and by representation predictions at the places that the caller names.

Blocks: `models.unified.blocks`. Visual input: `models.unified.patchify`, of a code an embedding; to latents and pixels
an embedding of the segment's time is added, once at the input rather than modulating every token, and with a modulation
(`models.unified.places`) in each block too; clean context has time 0. Visual output: a norm and a Linear, or as the
config says, a unet and a flow head; and where it has one a head that gives the density of latents
(`models.unified.density`).

Shapes: B rows, L places of a row, N places that are fed at once (L in training), D width, V vocabulary, T text
targets, S visual segments of a row at most; of one representation M positions, A predictions, C channels of a value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omniloom.models.linear import Linear
from omniloom.models.meta import without_memory
from omniloom.models.unified import mup
from omniloom.models.unified.attention import Attend, attend_for, dense
from omniloom.models.unified.batch import Batch, VisualPart
from omniloom.models.unified.blocks import GatedAttentionUnit, LayerCache, StepEmbedding, TimeEmbedding, make_blocks
from omniloom.models.unified.config import TIME_SCALE, UnifiedConfig
from omniloom.models.unified.density.build import make_head
from omniloom.models.unified.flow_head import FlowHead
from omniloom.models.unified.mask import dense_mask
from omniloom.models.unified.parameters import modulation_size
from omniloom.models.unified.parts import norm_of
from omniloom.models.unified.patchify import GridTables, UNetInput, UNetOutput, VisualInput
from omniloom.models.unified.places import Modulation, Places, places_of
from omniloom.models.unified.positions import rotary, sinusoids
from omniloom.models.unified.recurrence import Recurrence, StateCache, chain_of
from omniloom.models.unified.representations import DENSITY, REPRESENTATIONS
from omniloom.models.unified.sequence import RowShare


def _visual_input(name: str, config: UnifiedConfig) -> nn.Module:
    size, kind = getattr(config, REPRESENTATIONS[name].size), config.patchifier(name)
    if REPRESENTATIONS[name].discrete:  # the last one is the mask
        if config.code_dim is None:
            return nn.Embedding(size + 1, config.width)
        return nn.Sequential(
            nn.Embedding(size + 1, config.code_dim),
            nn.Linear(config.code_dim, config.width),
            nn.GELU(),
            nn.Linear(config.width, config.width),
        )
    if kind == "unet":
        return UNetInput(size, config)
    if kind == "bottleneck":
        bottleneck = config.pixel_bottleneck
        return nn.Sequential(nn.Linear(size, bottleneck, bias=False), nn.Linear(bottleneck, config.width))
    return nn.Linear(size, config.width)


def _visual_output(name: str, config: UnifiedConfig) -> nn.Module:
    row = REPRESENTATIONS[name]
    features = config.unet_width if config.patchifier(name) == "unet" else config.width
    if row.discrete and config.code_dim is not None:
        size = getattr(config, row.size)
        return nn.Sequential(nn.Linear(config.width, config.width), nn.GELU(), nn.Linear(config.width, size))
    if config.flow_head_layers and not row.discrete:
        return FlowHead(features, getattr(config, row.size), config)
    return nn.Linear(features, getattr(config, row.size), bias=not row.discrete or bool(config.head_bias))


class UnifiedModel(nn.Module):
    """The module; `num_parameters(config)` gives its size without building it.

    `checkpoint_activations` may be set to recompute blocks in the backward pass; results do not change.
    """

    def __init__(self, config: UnifiedConfig):
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        rows = [REPRESENTATIONS[name] for name in config.representations]
        self.embed = nn.Embedding(config.vocab_size, config.width)
        for row in rows:
            setattr(self, f"{row.prefix}_in", _visual_input(row.name, config))
            if config.patch_mask_high > 0 and not row.discrete:
                setattr(self, f"{row.prefix}_mask", nn.Embedding(1, config.width))
        if not all(row.discrete for row in rows):
            self.time = TimeEmbedding(config.time_dim, config.width, config.time_scale or TIME_SCALE)
        if config.tells_steps:
            self.step = StepEmbedding(config.time_dim, config.width)
        if config.is_modulated:  # of all blocks at once
            self.modulation = nn.Linear(config.width, modulation_size(config))
        self.blocks = make_blocks(config)
        self.norm = norm_of(config)
        self.head = Linear(config.width, config.vocab_size, bias=bool(config.head_bias))
        self.logits_factor = mup.logits_factor(config)
        for row in rows:
            setattr(self, f"{row.prefix}_norm", norm_of(config))
            if config.patchifier(row.name) == "unet":
                setattr(self, f"{row.prefix}_unet", UNetOutput(config))
            setattr(self, f"{row.prefix}_out", _visual_output(row.name, config))
        if config.density and config.latent_dim:
            self.density = make_head(config.density, config.head_shape(config.latent_dim), config.norm_eps)
        self.reset_parameters()
        if config.tied:
            self.head.weight = self.embed.weight

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal with std 0.02, residual outputs shrunk by sqrt(the number that a place passes) (GPT-2's rule); the
        visual inputs keep unit-variance latents at the embeddings' scale, and the outputs of a diffusion and its
        modulation start at 0."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, GatedAttentionUnit | Recurrence):
                module.reset_scales()
        passed = self.config.layers * self.config.sublayers
        for block in self.blocks:  # each has those of pictures too, once
            for linear in block.residual_outputs:
                linear.weight.div_(math.sqrt(passed))
        outputs = [
            getattr(self, f"{REPRESENTATIONS[name].prefix}_out")
            for name in self.config.representations
            if not REPRESENTATIONS[name].discrete
        ]
        zero = [linear for linear in outputs if isinstance(linear, nn.Linear)]
        zero += [self.modulation] if self.config.is_modulated else []
        for module in self.modules():
            zero += getattr(module, "starts_at_zero", ())
        for linear in zero:
            nn.init.zeros_(linear.weight)
        if self.config.has_density:
            self.density.reset()
        for name, factor in self.mup_factors().items():
            self.get_parameter(name).mul_(factor.std)

    def mup_factors(self) -> dict[str, mup.Factors]:
        """What `config.mup` does to initial weights and learning rates, by name; empty without it."""
        if (base := self.config.base) is None:
            return {}
        small = without_memory(UnifiedModel, replace(base, layers=self.config.layers))
        return mup.factors(self, small, self.config.layers / base.layers)

    def embed_times(self, times: Tensor, steps: Tensor | None = None) -> Tensor:
        """Times (...) -> (..., D), with step sizes of their shape where the config has them: none are 0."""
        embedded = self.time(times)
        if not self.config.tells_steps:
            return embedded
        return embedded + self.step(torch.zeros_like(times) if steps is None else steps)

    def embed_visual(
        self,
        name: str,
        values: Tensor,
        time: Tensor | None = None,
        segment: Tensor | None = None,
        tables: GridTables | None = None,
        masked: Tensor | None = None,
        cells: Tensor | None = None,
    ) -> tuple[Tensor, VisualInput | None]:
        """Input of the first block for the positions of one representation, (M, D), and what `visual_head` may look
        back at, None of codes.

        values   (M, C), or codes int64 (M,), where `codebook_size` is the mask
        time     of all but codes: `embed_times` of the segments' times, (segments, D)
        segment  int64 (M,), of each position; tables: of the segments' grids, where the config has a unet
        masked   bool (M,): positions that enter as the learned token instead; a flow head still sees their values
        cells    (M, 2): row and column of each position, whose sinusoids are added; None adds none
        """
        prefix = REPRESENTATIONS[name].prefix
        entry = getattr(self, f"{prefix}_in")
        if REPRESENTATIONS[name].discrete:
            return self._in_its_cell(entry(values), cells), None
        if time is None or segment is None:
            raise ValueError(f"{name}: expected the times of segments, and whose each position is")
        source = VisualInput(values.to(self.time.mlp[0].weight.dtype), time, segment, tables)
        if isinstance(entry, UNetInput):
            # Convolutions would tell a masked position's neighbours its value.
            visible = (
                source if masked is None else replace(source, values=source.values.masked_fill(masked[:, None], 0))
            )
            x_MD, source.features = entry(visible)
        else:
            x_MD = entry(source.values)
        if masked is not None:
            token_1D = getattr(self, f"{prefix}_mask")(torch.zeros_like(segment[:1]))
            x_MD = torch.where(masked[:, None], token_1D.to(x_MD.dtype), x_MD)
        # index_select throughout: its backward pass is several times faster than indexing's on a CPU.
        return self._in_its_cell(x_MD + time.index_select(0, segment), cells), source

    def _in_its_cell(self, x: Tensor, cells: Tensor | None) -> Tensor:
        return x if cells is None else x + sinusoids(cells, self.config.width).to(x.dtype)

    def embed_inputs(
        self,
        ids: Tensor,
        parts: Mapping[str, VisualPart],
        values: Mapping[str, Tensor],
        times: Mapping[str, Tensor],
        masked: Mapping[str, Tensor] | None = None,
        steps: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, VisualInput | None], Places | None]:
        """Input of the first block, (B, N, D), by representation what its head may look back at, and what blocks are
        told of the places, None where no option asks.

        ids int64 (B, N); parts as in `Batch`; values by representation, of the parts' shapes, as the network is to
        see them; times by representation, but of codes, float (B, S) in [0, 1], 0 for clean context; steps likewise,
        how far a sampler goes from there, 0 where none is given; masked as in `embed_visual`, by representation.
        """
        text_BND = self.embed(ids)
        x_ND, sources = text_BND.flatten(0, 1), {}  # B * N places, one after the other
        names = [name for name in parts if not REPRESENTATIONS[name].discrete]
        embedded_times: dict[str, Tensor] = {}
        if names:
            told = torch.stack([times[name] for name in names])
            sizes = torch.stack([(steps or {}).get(name, torch.zeros_like(told[0])) for name in names])
            embedded_times = dict(zip(names, self.embed_times(told, sizes).flatten(1, 2)))
        for name, part in parts.items():
            places, x_MD, sources[name] = self._entered(
                name, part, values[name], embedded_times.get(name), (masked or {}).get(name)
            )
            x_ND = x_ND.index_copy(0, places, x_MD.to(x_ND.dtype))
        return x_ND.view_as(text_BND), sources, self._places(parts, embedded_times, ids)

    def _places(self, parts: Mapping[str, VisualPart], times: dict[str, Tensor], ids: Tensor) -> Places | None:
        c = self.config
        if not (c.is_modulated or c.has_experts or c.attention_every):
            return None
        return places_of(parts, times if c.is_modulated else {}, ids.numel(), ids.device, experts=c.has_experts)

    def _entered(
        self, name: str, part: VisualPart, values: Tensor, time: Tensor | None, masked: Tensor | None
    ) -> tuple[Tensor, Tensor, VisualInput | None]:
        """The places of a part's positions that are here, the input there, and what `visual_head` may look back at: of
        those positions, but under a unet, which goes through whole pictures, of all."""
        segment, here, cells = part.segment, part.here, part.cells
        if here and part.tables is None:
            values, segment = values.index_select(0, here.rows), segment.index_select(0, here.rows)
            masked, cells = (None if x is None else x.index_select(0, here.rows) for x in (masked, cells))
        x, source = self.embed_visual(name, values, time, segment, part.tables, masked, cells)
        if here is None:
            return part.index, x, source
        return here.places, x if part.tables is None else x.index_select(0, here.rows), source

    def backbone(
        self,
        x: Tensor,
        positions: Tensor,
        attend: Attend,
        caches: Sequence[LayerCache | StateCache] | None = None,
        layer_states: dict[int, Tensor] | None = None,
        places: Places | None = None,
        starts: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, N, D) before the final norms, of x (B, N, D).

        positions     float32 (B, N, axes)
        attend        attention, with the mask
        caches        one a layer, hold what earlier calls computed
        layer_states  by number of a block, from 1: receives the states behind each that is a key
        places        where pictures are among the places, as `embed_inputs` gives them; None: there are none
        starts        int64 (B, N): the first place of each place's document; None: all are of one that `caches` hold
        """
        c = self.config
        places = self._chained(places, starts, x)
        modulations = self._modulations(places)
        cos, sin = (a[:, None] for a in rotary(positions, c.rotary_dim, c.rope_base, c.rope_scaling))
        earlier: list[Tensor] = []  # inputs of the first half, for their mirror images
        for index, block in enumerate(self.blocks):
            cache = caches[index] if caches is not None else None
            if c.long_skips and index < c.layers // 2:
                earlier.append(x)
            skip = earlier.pop() if block.skip is not None else None
            given = (x, cos, sin, attend, cache, skip, places, modulations[index])
            if self.checkpoint_activations and self.training:
                x = checkpoint(block, *given, use_reentrant=False)
            else:
                x = block(*given)
            if layer_states and index + 1 in layer_states:
                layer_states[index + 1] = x
        return x

    def _chained(self, places: Places | None, starts: Tensor | None, x: Tensor) -> Places | None:
        if self.config.attention_every is None:
            return places
        shape, visual = x.shape[:2], None
        if places is not None and places.pictures is not None:
            visual = places.pictures.view(shape)
        if starts is None:
            starts = torch.full(shape, -1, device=x.device)
        return replace(places or Places(), chain=chain_of(starts, visual))

    def _modulations(self, places: Places | None) -> Sequence[Modulation | None]:
        """One a block."""
        c = self.config
        if places is None or places.times is None or places.index is None or places.row is None:
            return [None] * c.layers
        tables = self.modulation(F.silu(places.times)).view(-1, c.layers, 3 * c.sublayers, c.width)
        return [Modulation(table, places.index, places.row) for table in tables.unbind(1)]

    def text_head(self, hidden: Tensor) -> Tensor:
        """(..., D) -> vocabulary logits (..., V)."""
        x = self.norm(hidden)
        return self.head(x if self.logits_factor == 1 else x * self.logits_factor)

    def visual_head(self, name: str, hidden: Tensor, source: VisualInput | None, rows: Tensor | None = None) -> Tensor:
        """(..., D) -> of latents and pixels a prediction (..., C): x, noise or v, as the diffusion's config says; of
        codes logits (..., codebook_size).

        source  what `embed_visual` returned with the input of these positions
        rows    int64 (A,): which of the source's positions to predict, all by default. `hidden` is theirs alone, but
                under a unet, which goes through whole pictures, that of all of the source's positions
        """
        prefix, lead = REPRESENTATIONS[name].prefix, hidden.shape[:-1]
        out = getattr(self, f"{prefix}_out")
        x = getattr(self, f"{prefix}_norm")(hidden)
        if self.config.patchifier(name) == "unet":
            x = getattr(self, f"{prefix}_unet")(x.flatten(0, -2), source)
            x, lead = (x, lead) if rows is None else (x.index_select(0, rows), rows.shape)
        if isinstance(out, FlowHead):
            if source is None:
                raise ValueError(f"{name}: a flow head looks back at what went in, got None")
            values_AC, segment_A = (
                a if rows is None else a.index_select(0, rows) for a in (source.values, source.segment)
            )
            x = out(x.flatten(0, -2), values_AC, source.time, segment_A)
        else:
            x = out(x)
        return x.view(*lead, x.shape[-1])

    def forward(
        self,
        batch: Batch,
        values: Mapping[str, Tensor],
        times: Mapping[str, Tensor],
        places: Mapping[str, Tensor],
        masked: Mapping[str, Tensor] | None = None,
        layer_states: dict[int, Tensor] | None = None,
        share: RowShare | None = None,
        asked: Mapping[str, Tensor] | None = None,
        steps: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Packed forward pass.

        values, times  by representation, as in `embed_inputs`: x_t at target positions, clean values at context's;
                       steps likewise
        places         by representation: int64 (A,), the flat places (b*L + l) to predict; under "density" those whose
                       hidden states the density head is given
        masked         by representation, bool (M,): positions that enter as a learned token, where the config has one
        layer_states   as in `backbone`
        share          where ranks share rows out, this one's places of them: `batch` is `share.of` whole rows, places
                       are flat places b*n + i of this rank, values and masked those of whole rows
        asked          what the density head is asked there (`models.unified.density`): tensors with a row for each of
                       its places; None where it is not asked
        Returns logits (T, V) at `batch.label_index`, and by representation predictions (A, C); under "density" what
        that head says, (A, ...). Every parameter takes part whatever the batch holds, as ZeRO-3 needs; a learned token
        where `masked` is given, a density head where it is asked.
        """
        x_BLD, sources, places_of_pass = self.embed_inputs(batch.ids, batch.parts, values, times, masked, steps)
        attend = attend_for(batch.plan, batch.start, batch.end, self.config.gau_length)
        if share and self.config.attention_every:
            raise ValueError("share: a recurrence goes through whole rows, which cannot be shared out")
        if share:
            attend = share.attention(attend)
        hidden_BLD = self.backbone(
            x_BLD, batch.positions, attend, layer_states=layer_states, places=places_of_pass, starts=batch.start
        )
        hidden_LD = hidden_BLD.flatten(0, 1)  # B * L places, one after the other
        outputs = {
            name: self._predicted(name, part, hidden_LD, places[name], sources[name], share)
            for name, part in batch.parts.items()
        }
        if asked is not None:
            outputs[DENSITY] = self.density(hidden_LD.index_select(0, places[DENSITY]), **asked)
        return self.text_head(hidden_LD.index_select(0, batch.label_index)), outputs

    def _predicted(
        self,
        name: str,
        part: VisualPart,
        hidden_LD: Tensor,
        places_A: Tensor,
        source: VisualInput | None,
        share: RowShare | None,
    ) -> Tensor:
        """(A, C), of the hidden states of all places that are here."""
        # A part lists its places in ascending order. Codes are not looked back at.
        listed = part.here.places if part.here else part.index
        rows_A = None if source is None else torch.searchsorted(listed, places_A)
        if self.config.patchifier(name) != "unet":
            return self.visual_head(name, hidden_LD.index_select(0, places_A), source, rows_A)
        if share and part.here and rows_A is not None:
            hidden_LD, rows_A = share.gathered(hidden_LD), part.here.rows.index_select(0, rows_A)
        return self.visual_head(name, hidden_LD.index_select(0, part.index), source, rows_A)

    def compile_blocks(self, **options: Any) -> None:
        """Compile the blocks, one at a time and in place (regional compilation): as they share their code, the first
        one's graph serves all of them, and compiling takes the time of one block instead of the model's. Names of
        parameters stay.

        options  of `torch.compile`. Left alone, it learns within a few steps that plans for CPUs vary in size; with
                 `dynamic=False` it would compile for each size
        For training: generation's caches grow with every token, so generate with a copy of the module, which is not
        compiled.
        """
        for block in self.blocks:
            block.compile(**options)

    def text_logits(self, ids: Tensor) -> Tensor:
        """Plain causal language model: ids int64 (B, N) -> logits (B, N, V)."""
        B, N = ids.shape
        line = torch.arange(N, device=ids.device)
        positions = line.float()[None, :, None].expand(B, N, self.config.axes)
        attend = dense(dense_mask(torch.zeros_like(line)[None], line[None] + 1), self.config.gau_length)
        starts = torch.zeros_like(ids)
        return self.text_head(self.backbone(self.embed(ids), positions, attend, starts=starts))
