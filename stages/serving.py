"""The model behind `mlflow.pyfunc`: rows of prompts and pictures in, rows of text and pictures out.

MLflow stores this file as the model's code and runs it where the model is loaded, in a process that has the omniloom
distribution; the artifact `bundle` is a folder that `models.bundle.OmniLoom.save` wrote.
"""
from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import mlflow
import pandas

TASKS = ("text_to_image", "text_to_video", "image_to_text", "text_to_text")
# What `predict` takes as params, by the task that it is for; all others are refused.
_DRAWING = ("num_steps", "guidance_scale", "size", "objective")
_WRITING = ("max_new_tokens", "temperature", "top_k", "top_p", "objective")
_MARK = {"model": "omniloom"}  # says that a model made this picture: ingest reads it


class OmniLoomModel(mlflow.pyfunc.PythonModel):
    """`predict` over rows with the columns `prompt`, `image` (an encoded picture: bytes, or base64) and `task`.

    `task` defaults to `image_to_text` for a row with a picture and to `text_to_image` for one without, of a model of
    text alone to `text_to_text`. The answer has
    a row for each: `text` (or None) and `image` (PNG bytes, mp4 bytes for a video, or None). A row that is wrong
    raises `ValueError` naming the row and the column.
    """

    def load_context(self, context: Any) -> None:
        from models.bundle import OmniLoom

        self.model = OmniLoom.load(context.artifacts["bundle"])

    def predict(self, context: Any, model_input: pandas.DataFrame,
                params: dict[str, Any] | None = None) -> pandas.DataFrame:
        """`model_input`: a DataFrame, a list of dicts or of prompts. `params`: `seed` and the sampling options of
        `models.bundle.OmniLoom` (`num_steps`, `guidance_scale`, `size`, `objective`, `max_new_tokens`, `temperature`,
        ...)."""
        usual = "text_to_image" if self.model.config.objectives else "text_to_text"
        rows = [_row(number, values, usual) for number, values in enumerate(_rows(model_input))]
        options = dict(params or {})
        if unknown := set(options) - {"seed", *_DRAWING, *_WRITING}:
            raise ValueError(f"params: unknown {', '.join(sorted(unknown))}")
        seed = int(options.pop("seed", 0))
        options["objective"] = options.get("objective") or None  # a string in the signature has no other nothing
        answers: list[dict[str, Any]] = [{"text": None, "image": None} for _ in rows]
        for task in TASKS:
            chosen = [number for number, row in enumerate(rows) if row["task"] == task]
            if chosen:
                made = self._answer(task, [rows[number] for number in chosen], [seed + n for n in chosen], options)
                for number, answer in zip(chosen, made, strict=True):
                    answers[number].update(answer)
        return pandas.DataFrame(answers, columns=["text", "image"], dtype=object)

    def _answer(self, task: str, rows: Sequence[dict], seeds: list[int], options: Mapping[str, Any]) -> list[dict]:
        from stages.media import encode_mp4, encode_png

        prompts = [row["prompt"] for row in rows]
        drawing = {name: options[name] for name in _DRAWING if name in options}
        writing = {name: options[name] for name in _WRITING if name in options}
        match task:
            case "text_to_image":
                images = self.model.text_to_image(prompts, seeds=seeds, **drawing)
                return [{"image": encode_png(image, _MARK)} for image in images]
            case "text_to_video":
                videos = self.model.text_to_video(prompts, seeds=seeds, **drawing)
                return [{"image": encode_mp4(video, self.model.config.fps, _MARK)} for video in videos]
            case "text_to_text":
                return [{"text": text} for text in self.model.text_to_text(prompts, seeds=seeds, **writing)]
        answers: list[dict] = [{}] * len(rows)
        for prompt in dict.fromkeys(prompts):  # a call takes one prompt for all its pictures
            chosen = [number for number, row in enumerate(rows) if row["prompt"] == prompt]
            texts = self.model.image_to_text([rows[number]["image"] for number in chosen], prompt=prompt,
                                             seeds=[seeds[number] for number in chosen], **writing)
            for number, text in zip(chosen, texts, strict=True):
                answers[number] = {"text": text}
        return answers


def signature() -> mlflow.models.ModelSignature:
    """The model's columns and parameters, which MLflow checks before `predict`.

    A picture is bytes here; MLflow's scoring server takes base64 for it. `seed` counts up by row; an empty `objective`
    is the first of those that the model was trained with.
    """
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    text, data = DataType.string, DataType.binary
    return mlflow.models.ModelSignature(
        Schema([ColSpec(text, "prompt", required=False), ColSpec(text, "task", required=False),
                ColSpec(data, "image", required=False)]),
        Schema([ColSpec(text, "text", required=False), ColSpec(data, "image", required=False)]),
        ParamSchema([ParamSpec("seed", DataType.long, 0), ParamSpec("num_steps", DataType.long, 20),
                     ParamSpec("guidance_scale", DataType.double, 2.0), ParamSpec("max_new_tokens", DataType.long, 64),
                     ParamSpec("temperature", DataType.double, 0.0), ParamSpec("objective", DataType.string, "")]))


def _rows(model_input: Any) -> list[Mapping[str, Any]]:
    if isinstance(model_input, pandas.DataFrame):
        return model_input.to_dict("records")
    if isinstance(model_input, str | Mapping):
        model_input = [model_input]
    return [{"prompt": row} if isinstance(row, str) else row for row in model_input]


def _row(number: int, values: Mapping[str, Any], usual: str) -> dict[str, Any]:
    """A checked row: prompt str, task one of `TASKS` (`usual` where it has neither task nor picture), image uint8
    (H, W, 3) or None."""
    given = {name: value for name, value in values.items() if not _is_missing(value)}
    if unknown := set(given) - {"prompt", "image", "task"}:
        raise ValueError(f"row {number}: unknown column {', '.join(sorted(map(str, unknown)))}")
    task = given.get("task") or ("image_to_text" if "image" in given else usual)
    if task not in TASKS:
        raise ValueError(f"row {number}: task: expected one of {', '.join(TASKS)}, got {task!r}")
    if task == "image_to_text" and "image" not in given:
        raise ValueError(f"row {number}: image: is missing for {task}")
    if task != "image_to_text" and "image" in given:
        raise ValueError(f"row {number}: image: {task} takes none")
    prompt = given.get("prompt", "")
    if not isinstance(prompt, str):
        raise ValueError(f"row {number}: prompt: expected text, got {type(prompt).__name__}")
    image = _picture(number, given["image"]) if task == "image_to_text" else None
    return {"prompt": prompt, "task": task, "image": image}


def _is_missing(value: Any) -> bool:
    return value is None or isinstance(value, float) and value != value


def _picture(number: int, value: Any):
    from stages.media import MediaError, decode_image

    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else bytes(value)
        return decode_image(data)
    except (binascii.Error, TypeError, MediaError) as error:
        raise ValueError(f"row {number}: image: {error}") from error


mlflow.models.set_model(OmniLoomModel())
