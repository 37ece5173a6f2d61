"""`sample`, `sampler`, `export`: what a trained model makes, a predictor for making it in few steps, and the model for
tools of others."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from omniloom.infra.errors import InputError
from omniloom.pipelines.commands.arguments import Model, Prompts
from omniloom.pipelines.options import sampling_options

_TEMPERATURE = (
    "of text 0 where one description is asked for, else 0.8 with --top-p 0.95, and what then goes round in circles is "
    "cut; of codes 1"
)


@sampling_options(usual={"temperature": _TEMPERATURE})
def sample(
    model: Model,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="A caption to draw, or a text to go on from.")] = "",
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A picture that stands before the prompt, to describe or to draw after; may be given more than once.",
        ),
    ] = None,
    draw: Annotated[bool, typer.Option("--draw", help="Draw an image, as without --image.")] = False,
    video: Annotated[bool, typer.Option("--video", help="Draw a video.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Write, as with --image.")] = False,
    interleave: Annotated[
        bool, typer.Option("--interleave", help="Write, and draw where the model opens a picture.")
    ] = False,
    prompts: Prompts = None,
    count: Annotated[int, typer.Option(metavar="N", min=1, help="How many samples of each request.")] = 1,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Samples count up from it.")] = 0,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for what is drawn.")] = Path("samples"),
    jsonl: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="List what was made as JSON lines; OUT/samples.jsonl for several requests and with --interleave.",
        ),
    ] = None,
    *,
    sampling: dict,
) -> None:
    """Sample from a trained model.

    From text and pictures it makes text, images, videos, or text and pictures in turn.
    """
    from omniloom.pipelines.trained import find_model
    from omniloom.stages.inference.requests import Options, Request, chosen_task, read_requests
    from omniloom.stages.inference.sampling import sample as make

    if prompts and (prompt or image):
        raise InputError("excludes --prompt and --image", field="--prompts")
    options = Options(
        task=chosen_task(draw=draw, video=video, text=text, interleave=interleave),
        count=count,
        seed=seed,
        sampling=sampling,
    )
    requests = read_requests(prompts) if prompts else [Request(prompt, tuple(image or ()))]
    for line in make(find_model(model), requests, options, out, jsonl):
        print(line, flush=True)


@sampling_options(("num_steps", "guidance_scale", "objective", "size"), required=("num_steps",))
def sampler(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the predictor is written.")],
    prompts: Prompts = None,
    iterations: Annotated[int, typer.Option(metavar="N", min=1, help="Steps of its training.")] = 150,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Pictures a step.")] = 8,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of its training.")] = 0,
    *,
    sampling: dict,
) -> None:
    """Train AMED's predictor for a model, to draw in few steps.

    Then: `omniloom sample MODEL --sampler amed --predictor FILE`. It serves the --steps and the --guidance that it is
    trained with.
    """
    from omniloom.pipelines.trained import find_model
    from omniloom.stages.inference.amed import Training, train
    from omniloom.stages.inference.options import visual_sampling

    training = Training(visual_sampling(sampling), iterations=iterations, batch_size=batch, seed=seed)
    for line in train(find_model(model), training, out, prompts):
        print(line, flush=True)


class Target(StrEnum):
    """What a model is exported for."""

    hf = "hf"
    lmms_eval = "lmms-eval"
    geneval = "geneval"
    transformers = "transformers"


def export(
    model: Model,
    to: Annotated[
        Target, typer.Option("--to", metavar="hf|lmms-eval|geneval|transformers", help="What the folder is for.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="A folder that is new or empty.")],
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With geneval: the prompts of GenEval 2, GenEval or UEval, as these have them."
        ),
    ] = None,
    count: Annotated[int, typer.Option(metavar="N", min=1, help="With GenEval's prompts: pictures a prompt.")] = 1,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="With geneval: samples count up from it.")] = 0,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="With transformers: what the model started from, where it is not there any more."
        ),
    ] = None,
) -> None:
    """Write a model as a folder for tools of others.

    hf: a Hugging Face repository that torch and safetensors alone run, with a model card, and the visual tokenizer as
    an autoencoder folder. lmms-eval: that, with the plugin that lmms-eval runs. geneval: pictures of a benchmark's
    prompts, in the folders that its scripts read. transformers: the folder that training started from (Llama, Qwen,
    Chameleon, Emu3, Janus) with the model's weights in place of its own.
    """
    from omniloom.pipelines.exporting.export import export as write

    for line in write(model, to.value, out, prompts, count, seed, start):
        print(line)
