"""Computing batches of jobs with a model. In: jobs, tickets of `stages.serving.computing`. Out: their events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from omniloom.models.unified.batch import Document, document_length
from omniloom.models.unified.generation.draw import Predicted
from omniloom.models.unified.generation.generate import generate_interleaved, generate_visual
from omniloom.models.unified.generation.interleaved import Drawing, Request
from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling
from omniloom.stages.inference.options import text_sampling, visual_sampling
from omniloom.stages.serving.computing import Abandoned, Ticket
from omniloom.stages.serving.jobs import Interim, Job, Made, Refused, Written

if TYPE_CHECKING:
    from omniloom.models.model import OmniLoom

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a character is whose bytes are not all written yet


class Maker:
    """A model at work."""

    def __init__(self, loom: OmniLoom):
        self.loom = loom

    def resolve(self, job: Job) -> tuple[TextSampling, VisualSampling]:
        """How the job writes and draws; `Refused` where the model cannot."""
        try:
            text, visual = text_sampling(job.sampling), visual_sampling(job.sampling, self.loom)
            if "image_guidance_scale" in job.sampling and not job.images:
                raise ValueError("image_guidance_scale: guides by the pictures before the prompt, of which are none")
            if job.task != "text" or job.images:  # a model of text alone knows no pictures
                visual = self.loom.resolve(replace(visual, num_frames=1))
                if job.interim and visual.row.causal:
                    raise ValueError(f"interim: {visual.objective} draws code after code and has no interim pictures")
        except ValueError as error:
            name, _, message = str(error).partition(": ")
            raise (Refused(message, name) if message else Refused(name)) from None
        return text, visual

    def make(self, tickets: Sequence[Ticket]) -> None:
        """Compute the tickets' jobs, which go together; `Abandoned` once nobody waits for them."""
        text, visual = self.resolve(tickets[0].job)
        jobs = [ticket.job for ticket in tickets]
        prefixes = self.loom.prefixes([job.prompt for job in jobs], [job.images for job in jobs], visual)
        if jobs[0].task == "draw":
            self._draw(tickets, prefixes, visual)
        else:
            self._write(tickets, prefixes, text, visual if jobs[0].task == "interleave" else None)

    def _draw(self, tickets: Sequence[Ticket], prefixes: Sequence[Document], visual: VisualSampling) -> None:
        loom = self.loom
        grid = loom.grid(1, *loom.size_of(visual), visual.objective)
        shown = _Shown(tickets, visual, grid, lambda values: loom.decode(values, visual.objective)[:, 0])
        seeds = [ticket.job.seed for ticket in tickets]
        values = generate_visual(loom.model, prefixes, grid, visual, seeds, shown.watch)
        for ticket, prefix, picture in zip(tickets, prefixes, loom.decode(values, visual.objective)[:, 0], strict=True):
            ticket.tell(Made((picture,), document_length(prefix), int(np.prod(grid)), visual=visual))

    def _write(
        self, tickets: Sequence[Ticket], prefixes: Sequence[Document], text: TextSampling, visual: VisualSampling | None
    ) -> None:
        """`visual` where pictures are drawn between texts."""
        loom = self.loom
        drawing = Drawing(VisualSampling()) if visual is None else loom.drawing(visual)
        told = [_Told(loom, ticket) for ticket in tickets]

        def watch(requests: Sequence[Request]) -> None:
            _go_on(tickets)
            for one, request in zip(told, requests, strict=True):
                one.watch(request)

        generate_interleaved(
            loom.model, prefixes, text, drawing, seeds=[ticket.job.seed for ticket in tickets], watch=watch
        )
        for one, prefix in zip(told, prefixes, strict=True):
            one.finish(document_length(prefix), visual)


def _go_on(tickets: Sequence[Ticket]) -> None:
    if all(ticket.gone for ticket in tickets):
        raise Abandoned


class _Shown:
    """Interim pictures of a batch, each ticket's as often as it asks for them, evenly over the steps."""

    def __init__(
        self,
        tickets: Sequence[Ticket],
        visual: VisualSampling,
        grid: tuple[int, int, int],
        decode: Callable[[Tensor], np.ndarray],
    ):
        self.tickets, self.grid, self.decode = tickets, grid, decode
        count = int(np.prod(grid))
        self.steps = min(visual.num_steps, count) if visual.row.representation.discrete else visual.num_steps
        self.wanted = [
            {number * self.steps // (ticket.job.interim + 1) for number in range(1, ticket.job.interim + 1)} - {0}
            for ticket in tickets
        ]

    def watch(self, step: int, predicted: Predicted | None) -> None:
        _go_on(self.tickets)
        rows = [row for row, ticket in enumerate(self.tickets) if step in self.wanted[row] and not ticket.gone]
        if not rows or predicted is None:
            return
        values = predicted()[rows]
        for row, picture in zip(rows, self.decode(values.reshape(len(rows), *self.grid, *values.shape[2:]))):
            self.wanted[row].discard(step)  # of a sampler that evaluates a step twice
            self.tickets[row].tell(Interim(picture, step, self.steps))


class _Told:
    """Tells a ticket its text and pictures, as they are written where it asks for that."""

    def __init__(self, loom: OmniLoom, ticket: Ticket):
        self.loom, self.ticket = loom, ticket
        self.prompt = loom.text.encode(ticket.job.prompt)
        self.parts: list[str | np.ndarray] = []  # that are finished
        self.sent = ""  # of the text that is being written
        self.request: Request | None = None

    def watch(self, request: Request) -> None:
        self.request = request
        request.ended |= self.ticket.gone
        if self.ticket.job.stream:
            self._close(request)
            if request.ids:
                text = self.loom.text.continuation(() if self.parts else self.prompt, request.ids)
                self._send(text.rstrip(_UNFINISHED))

    def finish(self, prompt_tokens: int, visual: VisualSampling | None) -> None:
        request = self.request
        assert request is not None, "a request is watched at least once"
        self._close(request)
        finish: Literal["stop", "length"] = "length" if request.budget <= 0 else "stop"
        self.ticket.tell(Made(tuple(self.parts), prompt_tokens, document_length(request.segments), finish, visual))

    def _close(self, request: Request) -> None:
        """Take the segments that are finished since the last time."""
        for segment in request.segments[len(self.parts) :]:
            part = self.loom.told(segment, () if self.parts else self.prompt)
            if isinstance(part, str):
                self._send(part)
                self.sent = ""
            elif self.ticket.job.stream:
                self.ticket.tell(Written(part))
            self.parts.append(part)

    def _send(self, text: str) -> None:
        if self.ticket.job.stream and len(text) > len(self.sent):
            self.ticket.tell(Written(text[len(self.sent) :]))
            self.sent = text
