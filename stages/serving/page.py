"""The page: a prompt and pictures in, pictures and words out, with what was drawn before and how. In: a `Service`.
Out: the app with the page at /. Nothing of it comes from elsewhere, and nothing is told to anybody.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
import gradio as gr  # noqa: E402  reads them as it is imported

from omniloom.models.unified.generation.sampling import VisualSampling  # noqa: E402
from omniloom.stages.inference.loops import without_loop
from omniloom.stages.inference.sampling import freely
from omniloom.stages.serving.errors import api_error, wrong
from omniloom.stages.serving.fields import check_prompt, choice, decode_sent, drawn_size, first_seed
from omniloom.stages.serving.images import marked_png
from omniloom.stages.serving.jobs import Interim, Job, Made
from omniloom.stages.serving.service import Service

if TYPE_CHECKING:
    import numpy as np
    from fastapi import FastAPI

_INTERIM = 8  # pictures while one is drawn
_TOGETHER = 8  # pictures at most of one prompt
_KEPT = 60  # pictures that are remembered
_DAY = 86_400
_BUTTONS: list[Any] = ["download", "fullscreen"]  # none that shares with others
# One picture does not fill the width: it would be cut.
_CSS = "#drawn .grid-container {grid-template-columns: repeat(3, 1fr) !important} "
_CSS += "#before .grid-container {grid-template-columns: repeat(8, 1fr) !important} "
_CSS += "#drawn .grid-wrap, #before .grid-wrap {padding-top: 2rem}"  # below the label, which would hide a corner
# Of the reader's machine.
_FONT, _FONT_MONO = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")


def mount(app: FastAPI, service: Service) -> FastAPI:
    """The app with the page below its endpoints."""
    return gr.mount_gradio_app(
        app,
        Page(service).blocks(),
        path="/",
        theme=gr.themes.Default(font=_FONT, font_mono=_FONT_MONO),
        css=_CSS,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        max_file_size=service.limits.max_picture_bytes,
    )


class Asked(NamedTuple):
    """What stands in the page's fields when a picture is drawn, in their order."""

    prompt: str
    seed: int
    guidance: float
    steps: int
    objective: str | None
    size: str

    def __str__(self) -> str:
        return f"{self.prompt} (seed {self.seed}, guidance {self.guidance:g}, {self.steps} steps)"


class Page:
    """What the page's buttons do."""

    def __init__(self, service: Service):
        self.service = service
        self.folder = Path(tempfile.mkdtemp(prefix="omniloom-page-"))

    def blocks(self) -> Any:
        facts, limits = self.service.facts, self.service.limits
        objectives = list(facts.usual)
        draws, first = bool(objectives), next(iter(objectives), None)
        usual_guidance, usual_steps = self.usual(first)
        with gr.Blocks(
            title=f"OmniLoom: {facts.name}", analytics_enabled=False, delete_cache=(_DAY // 24, _DAY)
        ) as blocks:
            gr.Markdown(f"## {facts.name}")
            history = gr.State([])
            with gr.Row():
                with gr.Column(scale=2):
                    prompt = gr.Textbox(label="Prompt", lines=2, max_length=limits.max_prompt, elem_id="prompt")
                    picture = gr.Image(label="Picture before the prompt", type="filepath", height=200, elem_id="sent")
                    with gr.Row(visible=draws):
                        seed = gr.Number(label="Seed", value=0, precision=0, minimum=-1, info="-1: any")
                        count = gr.Slider(1, min(_TOGETHER, limits.max_n), 1, step=1, label="Pictures")
                    with gr.Row(visible=draws):
                        guidance = gr.Slider(0, 10, usual_guidance, step=0.1, label="Guidance")
                        steps = gr.Slider(1, limits.max_steps, usual_steps, step=1, label="Steps")
                    with gr.Row(visible=draws):
                        objective = gr.Dropdown(objectives, label="Objective", value=first)
                        size = gr.Textbox(label="Width x height", value="auto")
                    with gr.Row():
                        draw = gr.Button("Draw", variant="primary", visible=draws, elem_id="draw")
                        stop = gr.Button("Stop")
                        write = gr.Button("Describe or go on", elem_id="write")
                with gr.Column(scale=3):
                    drawn = gr.Gallery(
                        label="Drawn",
                        format="png",
                        columns=4,
                        height=360,
                        object_fit="contain",
                        buttons=_BUTTONS,
                        elem_id="drawn",
                        visible=draws,
                    )
                    status = gr.Markdown(elem_id="status")
                    written = gr.Textbox(label="Written", lines=3, elem_id="written")
            before = gr.Gallery(
                label="Drawn before: click a picture for its settings",
                columns=10,
                height=220,
                object_fit="contain",
                allow_preview=False,
                buttons=_BUTTONS,
                elem_id="before",
                visible=draws,
                format="png",
            )
            fields = [prompt, seed, guidance, steps, objective, size]  # in the order of `Asked`
            objective.input(self.usual, [objective], [guidance, steps], api_visibility="private")
            drawing = draw.click(
                self.draw,
                [*fields, picture, count, history],
                [drawn, status, history, before],
                api_visibility="private",
                concurrency_limit=None,
                show_progress="hidden",
            )
            writing = write.click(
                self.write,
                [prompt, seed, picture],
                [written, status],
                api_visibility="private",
                concurrency_limit=None,
                show_progress="hidden",
            )
            stop.click(None, cancels=[drawing, writing], api_visibility="private")
            before.select(self.again, [history], fields, api_visibility="private")
        return blocks

    def usual(self, objective: str | None) -> tuple[float, int]:
        """Guidance and steps of the model's own, by an objective."""
        own = self.service.facts.usual.get(objective or "", VisualSampling())
        return own.guidance_scale, min(own.num_steps, self.service.limits.max_steps)

    async def draw(self, *fields: Any) -> AsyncIterator[tuple]:
        """The pictures as they become, what there is to say, and what was drawn with them. `fields`: those of `Asked`,
        the picture before the prompt, how many are asked for, and the history."""
        *values, picture, count, history = fields
        asked = Asked(*values)
        try:
            jobs = self._drawings(asked, picture, int(count))
            shown: list[Any] = [None] * len(jobs)
            done: list[dict] = []
            async for number, event in self.service.run_all(jobs):
                if isinstance(event, Interim):
                    shown[number] = event.picture
                    status = f"step {event.step} of {event.steps}"
                elif isinstance(event, Made):
                    shown[number] = self._keep(jobs[number], event)
                    done.append({"file": shown[number], "asked": asked._replace(seed=jobs[number].seed)})
                    status = f"{len(done)} of {len(jobs)} drawn"
                yield [one for one in shown if one is not None], status, gr.skip(), gr.skip()
            history = [*sorted(done, key=lambda one: one["asked"].seed), *history][:_KEPT]
            told = [(one["file"], str(Asked(*one["asked"]))) for one in history]
            yield shown, f"{len(done)} drawn, from seed {jobs[0].seed}", history, told
        except Exception as error:
            raise gr.Error(api_error(error).message) from None

    def _drawings(self, asked: Asked, picture: str | None, count: int) -> list[Job]:
        facts, limits = self.service.facts, self.service.limits
        shown = self._sent(picture)
        if not asked.prompt and not shown:
            raise wrong("prompt", "is empty")
        check_prompt("prompt", asked.prompt, limits)
        values: dict[str, Any] = {"guidance_scale": float(asked.guidance), "num_steps": int(asked.steps)}
        values |= {"objective": asked.objective} if asked.objective else {}
        sampling = {name: choice(name, name, value, limits) for name, value in values.items()}
        if size := drawn_size(asked.size.strip() or None, facts, limits):
            sampling["size"] = size
        first = _first_seed(asked.seed, count)
        job = Job("draw", asked.prompt, shown, sampling=sampling, interim=_INTERIM)
        if asked.objective and _causal(asked.objective):
            job = replace(job, interim=0)
        return [replace(job, seed=first + number) for number in range(count)]

    async def write(self, prompt: str, seed: int, picture: str | None) -> AsyncIterator[tuple]:
        """The text as it is written."""
        try:
            shown = self._sent(picture)
            if not prompt and not shown:
                raise wrong("prompt", "is empty, and there is no picture")
            check_prompt("prompt", prompt, self.service.limits)
            job = Job("text", prompt, shown, _first_seed(seed, 1), dict(freely({}, bool(shown), 1)), stream=True)
            text = ""
            async for event in self.service.run(job):
                if isinstance(event, Made):
                    yield without_loop(text), f"{event.tokens} tokens, from seed {job.seed}"
                else:
                    text += getattr(event, "part", "")
                    yield text, "writing"
        except Exception as error:
            raise gr.Error(api_error(error).message) from None

    def again(self, history: list[dict], event: gr.SelectData) -> list:
        """The settings of the picture that was clicked."""
        return list(history[event.index]["asked"])

    def _sent(self, picture: str | None) -> tuple[np.ndarray, ...]:
        if picture is None:
            return ()
        data = Path(picture).read_bytes()
        return (decode_sent("picture", data, self.service.limits),)

    def _keep(self, job: Job, made: Made) -> str:
        """The file of a picture, with the mark of what a model made."""
        handle, name = tempfile.mkstemp(suffix=".png", dir=self.folder)
        with os.fdopen(handle, "wb") as file:
            file.write(marked_png(made.parts[0], self.service.facts.made_by, job, made))
        return name


def _causal(objective: str) -> bool:
    return VisualSampling(objective=objective).row.causal


def _first_seed(seed: int | None, count: int) -> int:
    """-1, or nothing: any."""
    return first_seed(None if seed is None or seed < 0 else int(seed), count)
