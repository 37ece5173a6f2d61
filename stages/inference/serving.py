"""The model behind `mlflow.pyfunc`: rows of prompts and pictures in, rows of text and pictures out.

MLflow stores this file as the model's code, with the tree that it imports, and runs it where the model is loaded; the
artifact `bundle` is a folder that `models.model.OmniLoom.save` wrote.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mlflow
import pandas

from omniloom.models.unified.generation.sampling import OWN_SAMPLING, TextSampling, VisualSampling
from omniloom.stages.inference.options import OPTIONS, Option, text_sampling, visual_sampling

if TYPE_CHECKING:
    from omniloom.models.model import OmniLoom

# What answering imports: the requirements of a registered model.
LIBRARIES = (
    "torch",
    "numpy",
    "pandas",
    "safetensors",
    "tokenizers",
    "pillow",
    "pillow-heif",
    "simplejpeg",
    "av",
    "blake3",
)
TASKS = ("text_to_image", "text_to_video", "image_to_text", "text_to_text")
Sampling = tuple[TextSampling, VisualSampling]
_KINDS = {int: "long", float: "double", str: "string", tuple: "long"}  # of MLflow's parameters, which have no None
_SEED = "seed"
_MARK = {"model": "omniloom"}  # says that a model made this picture: ingest reads it


class OmniLoomModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]  # loaded on first use
    """`predict` over rows with the columns `prompt`, `image` (an encoded picture: bytes, or base64) and `task`.

    `prompt` is there in every row, "" where a picture is described. `image` stands before the prompt. `task` defaults
    to `image_to_text` for a row with a picture and to `text_to_image` for one without, of a model of text alone to
    `text_to_text`. The answer has a row for each: `text` (or None) and `image` (PNG bytes, mp4 bytes for a video, or
    None). A row that is wrong raises `ValueError` naming the row and the column.
    """

    def load_context(self, context: Any) -> None:
        from omniloom.models.model import OmniLoom

        self.model = OmniLoom.load(context.artifacts["bundle"])

    def predict(
        self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> pandas.DataFrame:
        """`model_input`: a DataFrame, or a list of dicts. `params`: those of `signature`; `size` is [height, width],
        `seed` counts up by row."""
        usual = "text_to_image" if self.model.config.objectives else "text_to_text"
        rows = [_row(number, values, usual) for number, values in enumerate(_rows(model_input))]
        given = dict(params or {})
        seed = int(given.pop(_SEED, 0))
        sampling = _chosen(given, self.model)
        answers: list[dict[str, Any]] = [{"text": None, "image": None} for _ in rows]
        for task in TASKS:
            chosen = [number for number, row in enumerate(rows) if row["task"] == task]
            if chosen:
                made = self._answer(task, [rows[number] for number in chosen], [seed + n for n in chosen], sampling)
                for number, answer in zip(chosen, made, strict=True):
                    answers[number].update(answer)
        return pandas.DataFrame(answers, columns=["text", "image"], dtype=object)

    def _answer(self, task: str, rows: Sequence[dict], seeds: list[int], sampling: Sampling) -> list[dict]:
        from omniloom.stages.data.media.decode import encode_mp4, encode_png

        prompts, (text, visual) = [row["prompt"] for row in rows], sampling
        images = [[row["image"]] if row["image"] is not None else [] for row in rows]
        shared: dict[str, Any] = {"images": images, "seeds": seeds}
        if task in ("image_to_text", "text_to_text"):
            return [{"text": text} for text in self.model.text_to_text(prompts, text, visual, **shared)]
        if task == "text_to_image":
            drawn = self.model.text_to_image(prompts, visual, **shared)
            return [{"image": encode_png(image, _MARK)} for image in drawn]
        videos = self.model.text_to_video(prompts, visual, **shared)
        return [{"image": encode_mp4(video, self.model.config.fps, _MARK)} for video in videos]


def _chosen(given: Mapping[str, Any], model: OmniLoom | None = None) -> Sampling:
    """How `given` params ask for text and pictures of the model; a value that stands for the model's own is no choice.
    ValueError naming a param that is wrong."""
    options = _options()
    if unknown := set(given) - set(options):
        known = ", ".join(sorted([_SEED, *options]))
        raise ValueError(f"params: unknown {', '.join(sorted(unknown))}; known are {known}")
    try:
        chosen = {
            name: options[name].parse(_plain(value))
            for name, value in given.items()
            if value is not None and not (_is_own(options[name]) and _plain(value) == _unset(options[name]))
        }
        return text_sampling(chosen), visual_sampling(chosen, model)
    except ValueError as error:
        raise ValueError(f"params: {error}") from None


def _options() -> dict[str, Option]:
    """The parameters that a server takes from its clients."""
    return {name: option for name, option in OPTIONS.items() if option.server_side}


def _is_own(option: Option) -> bool:
    """Whether a model may have a default of its own."""
    return option.default is None or option.name in OWN_SAMPLING


def _plain(value: Any) -> Any:
    """Numbers and lists of numpy, which MLflow makes of a request's, as Python's."""
    return value.tolist() if hasattr(value, "tolist") else list(value) if isinstance(value, tuple) else value


def _unset(option: Option) -> Any:
    """What stands for no choice, as MLflow's parameters have no None: a value that the option does not take."""
    knob = option.knob
    if knob.kind is tuple:
        return []
    if knob.kind is str:
        return ""
    return knob.kind(knob.refused)


def signature() -> mlflow.models.ModelSignature:
    """The model's columns and parameters, which MLflow checks before `predict`.

    A picture is bytes here; MLflow's scoring server takes base64 for it.
    """
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    text, data = DataType.string, DataType.binary
    params = [ParamSpec(_SEED, DataType.long, 0)]
    for name, option in _options().items():
        default = _unset(option) if _is_own(option) else option.default
        shape = (-1,) if option.knob.kind is tuple else None
        params.append(ParamSpec(name, DataType[_KINDS[option.knob.kind]], default, shape))
    return mlflow.models.ModelSignature(
        # Were the prompt optional, MLflow would drop a misspelt column and the row would ask for nothing.
        Schema(
            [ColSpec(text, "prompt"), ColSpec(text, "task", required=False), ColSpec(data, "image", required=False)]
        ),
        Schema([ColSpec(text, "text", required=False), ColSpec(data, "image", required=False)]),
        ParamSchema(params),
    )


def _rows(model_input: Any) -> list[Mapping[str, Any]]:
    if isinstance(model_input, pandas.DataFrame):
        return model_input.to_dict("records")
    return [model_input] if isinstance(model_input, Mapping) else list(model_input)


def _row(number: int, values: Mapping[str, Any], usual: str) -> dict[str, Any]:
    """A checked row: prompt str, task one of `TASKS` (`usual` where it has neither task nor picture), image uint8
    (H, W, 3) or None."""
    if not isinstance(values, Mapping):
        raise ValueError(f"row {number}: expected the columns prompt, task and image, got {type(values).__name__}")
    given = {name: value for name, value in values.items() if not _is_missing(value)}
    if unknown := set(given) - {"prompt", "image", "task"}:
        raise ValueError(f"row {number}: unknown column {', '.join(sorted(map(str, unknown)))}")
    task = given.get("task") or ("image_to_text" if "image" in given else usual)
    if task not in TASKS:
        raise ValueError(f"row {number}: task: expected one of {', '.join(TASKS)}, got {task!r}")
    if task == "image_to_text" and "image" not in given:
        raise ValueError(f"row {number}: image: is missing for {task}")
    prompt = given.get("prompt", "")
    if not isinstance(prompt, str):
        raise ValueError(f"row {number}: prompt: expected text, got {type(prompt).__name__}")
    if not set(given) - {"prompt"} and not prompt:
        raise ValueError(f"row {number}: prompt: is empty, and there is no image: nothing is asked for")
    image = _picture(number, given["image"]) if "image" in given else None
    return {"prompt": prompt, "task": task, "image": image}


def _is_missing(value: Any) -> bool:
    return value is None or isinstance(value, float) and value != value


def _picture(number: int, value: Any):
    from omniloom.stages.data.media.decode import MediaError, decode_image

    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else bytes(value)
        return decode_image(data)
    except (binascii.Error, TypeError, MediaError) as error:
        raise ValueError(f"row {number}: image: {error}") from error


mlflow.models.set_model(OmniLoomModel())
