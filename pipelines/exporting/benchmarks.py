"""Pictures for benchmarks that judge folders of them. In: a model, a benchmark's file of prompts. Out: a folder as its
scripts read it, by what the file's rows have:

    GenEval 2   geneval2_data.jsonl (prompt, vqa_list): images/00000.png ... and image_paths.json, {prompt: file}
    GenEval     evaluation_metadata.jsonl (prompt, tag): 00000/metadata.jsonl and 00000/samples/0000.png ...
    UEval       JSON rows (id, prompt, task_type): images/ID_1.png ... and outputs.json,
                [{"id", "text_answer", "image_answer": [file, ...]}]
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omniloom.infra.errors import InputError
from omniloom.pipelines.exporting.models import Exported
from omniloom.stages.data.media.decode import encode_png
from omniloom.stages.inference import marks

_AT_ONCE = 16


def export(model: Exported, folder: Path, prompts: Path, count: int = 1, seed: int = 0) -> str:
    """The benchmark's name. `count`: pictures a prompt, of GenEval alone, whose own is 4. Paths in the files that are
    written are absolute. InputError where the file is of no benchmark known here."""
    if not model.loom.config.objectives:
        raise InputError("was trained on text alone and draws no pictures", field="MODEL", file=model.name)
    rows = read_prompts(prompts)
    first = rows[0]
    if "vqa_list" in first:
        _geneval2(model, folder, rows, seed)
        return "GenEval 2"
    if "tag" in first:
        _geneval(model, folder, rows, count, seed)
        return "GenEval"
    if "id" in first:
        _ueval(model, folder, rows, seed)
        return "UEval"
    raise InputError(
        f"expected rows of GenEval 2 (prompt, vqa_list), GenEval (prompt, tag) or UEval (id, prompt), got rows with "
        f"{', '.join(first)}",
        field="--prompts",
        file=str(prompts),
    )


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """JSON lines, or a JSON array. InputError naming the row that has no prompt."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        whole = text.lstrip().startswith("[")
        rows = json.loads(text) if whole else [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", field="--prompts", file=str(path)) from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"]:
            raise InputError(f"row {number}: expected an object with a prompt", field="--prompts", file=str(path))
    if not rows:
        raise InputError("holds no rows", field="--prompts", file=str(path))
    return rows


def _geneval2(model: Exported, folder: Path, rows: list[dict], seed: int) -> None:
    paths = {}
    for number, (row, picture) in enumerate(zip(rows, _drawn(model, [r["prompt"] for r in rows], seed), strict=True)):
        file = _write(model, folder / "images" / f"{number:05d}.png", picture, row["prompt"], seed + number)
        paths[row["prompt"]] = file
    _write_json(folder / "image_paths.json", paths)


def _geneval(model: Exported, folder: Path, rows: list[dict], count: int, seed: int) -> None:
    prompts = [row["prompt"] for row in rows for _ in range(count)]
    for number, picture in enumerate(_drawn(model, prompts, seed)):
        own = folder / f"{number // count:05d}"
        _write(model, own / "samples" / f"{number % count:04d}.png", picture, prompts[number], seed + number)
        (own / "metadata.jsonl").write_text(json.dumps(rows[number // count]) + "\n", encoding="utf-8")


def _ueval(model: Exported, folder: Path, rows: list[dict], seed: int) -> None:
    """What the model writes, with the pictures that it opens; where it opens none, one drawn from the prompt."""
    answers = []
    for number, row in enumerate(rows):
        (segments,) = model.loom.interleaved([row["prompt"]], seeds=[seed + number])
        pictures = [part for part in segments if not isinstance(part, str)]
        pictures = pictures or list(model.loom.text_to_image([row["prompt"]], seeds=[seed + number]))
        files = [
            _write(model, folder / "images" / f"{row['id']}_{n}.png", _still(part), row["prompt"], seed + number)
            for n, part in enumerate(pictures, 1)
        ]
        text = "".join(part for part in segments if isinstance(part, str)).strip()
        answers.append({"id": row["id"], "text_answer": text, "image_answer": files})
    _write_json(folder / "outputs.json", answers)


def _still(picture: np.ndarray) -> np.ndarray:
    """Of a video its last frame, which shows where it led."""
    return picture[-1] if picture.ndim == 4 else picture


def _drawn(model: Exported, prompts: Sequence[str], seed: int) -> Iterator[np.ndarray]:
    for at in range(0, len(prompts), _AT_ONCE):
        part = prompts[at : at + _AT_ONCE]
        yield from model.loom.text_to_image(part, seeds=list(range(seed + at, seed + at + len(part))))


def _write(model: Exported, path: Path, picture: np.ndarray, prompt: str, seed: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(picture, marks.mark(model.made_by, prompt, seed)))
    return str(path.resolve())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
