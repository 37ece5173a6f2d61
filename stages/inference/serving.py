"""The model behind `mlflow.pyfunc`: rows of prompts and pictures in, rows of text and pictures out.

MLflow stores this file as the model's code and runs it where the model is loaded, in a process that has the omniloom
distribution; the artifact `bundle` is a folder that `models.model.OmniLoom.save` wrote.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import mlflow
import pandas

TASKS = ("text_to_image", "text_to_video", "image_to_text", "text_to_text")
# What `predict` takes as params: name, type, the value that stands for the model's own, that value's meaning (None: it
# is one of the values). MLflow refuses a wrong type, and leaves out with a warning what is not listed here.
_DRAWING = (
    ("num_steps", "long", 20, None),
    ("guidance_scale", "double", 2.0, None),
    ("image_guidance_scale", "double", -1.0, "pictures are not guided by apart"),
    ("sampler", "string", "euler", None),
    ("num_frames", "long", 0, "training's"),
)
_WRITING = (
    ("max_new_tokens", "long", 64, None),
    ("temperature", "double", 0.0, None),
    ("top_k", "long", 0, "all"),
    ("top_p", "double", 1.0, "all"),
)
_SHARED = (("seed", "long", 0, None), ("size", "long", (), "training's"), ("objective", "string", "", "the first"))
_MARK = {"model": "omniloom"}  # says that a model made this picture: ingest reads it


class OmniLoomModel(mlflow.pyfunc.PythonModel):
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
        """`model_input`: a DataFrame, or a list of dicts. `params`: those of `signature`, as `models.model.OmniLoom`
        has them; `size` is [height, width], `seed` counts up by row."""
        usual = "text_to_image" if self.model.config.objectives else "text_to_text"
        rows = [_row(number, values, usual) for number, values in enumerate(_rows(model_input))]
        given = dict(params or {})
        known = {name for name, *_ in (*_SHARED, *_DRAWING, *_WRITING)}
        if unknown := set(given) - known:
            raise ValueError(f"params: unknown {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
        seed = int(given.pop("seed", 0))
        answers: list[dict[str, Any]] = [{"text": None, "image": None} for _ in rows]
        for task in TASKS:
            chosen = [number for number, row in enumerate(rows) if row["task"] == task]
            if chosen:
                made = self._answer(task, [rows[number] for number in chosen], [seed + n for n in chosen], given)
                for number, answer in zip(chosen, made, strict=True):
                    answers[number].update(answer)
        return pandas.DataFrame(answers, columns=["text", "image"], dtype=object)

    def _answer(self, task: str, rows: Sequence[dict], seeds: list[int], given: Mapping[str, Any]) -> list[dict]:
        from omniloom.stages.data.media.decode import encode_mp4, encode_png

        prompts = [row["prompt"] for row in rows]
        with_pictures = any(row["image"] is not None for row in rows)
        shared = {"images": [[row["image"]] if row["image"] is not None else [] for row in rows], "seeds": seeds}
        if task in ("image_to_text", "text_to_text"):
            # A model of text alone knows neither sizes nor objectives.
            settings = _settings(given, *_WRITING, *(_SHARED[1:] if with_pictures else ()))
            return [{"text": text} for text in self.model.text_to_text(prompts, **shared, **settings)]
        settings = _settings(given, *_DRAWING, *_SHARED[1:])
        size, frames = settings.pop("size", None), settings.pop("num_frames", None)
        clips = self.model.text_to_video(prompts, 1 if task == "text_to_image" else frames, size, **shared, **settings)
        if task == "text_to_image":
            return [{"image": encode_png(clip[0], _MARK)} for clip in clips]
        return [{"image": encode_mp4(clip, self.model.config.fps, _MARK)} for clip in clips]


def _settings(given: Mapping[str, Any], *known: tuple) -> dict[str, Any]:
    """Of the `given` params the `known` ones that ask for something else than the model's own."""
    chosen = {}
    for name, _, default, meaning in known:
        value = given.get(name)
        if name == "size" and value is not None and len(value):
            if len(value) != 2:
                raise ValueError(f"params: size: expected [height, width], got {list(value)}")
            chosen[name] = (int(value[0]), int(value[1]))
        elif name != "size" and value is not None and not (meaning and value == default):
            chosen[name] = value
    return chosen


def signature() -> mlflow.models.ModelSignature:
    """The model's columns and parameters, which MLflow checks before `predict`.

    A picture is bytes here; MLflow's scoring server takes base64 for it.
    """
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    text, data = DataType.string, DataType.binary
    params = [
        ParamSpec(name, DataType[kind], [] if name == "size" else default, (-1,) if name == "size" else None)
        for name, kind, default, _ in (*_SHARED, *_DRAWING, *_WRITING)
    ]
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
