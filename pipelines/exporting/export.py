"""What `omniloom export` does. In: a model, what it is for. Out: a folder, and lines that say what is in it."""

from __future__ import annotations

from pathlib import Path

from omniloom.infra.errors import InputError
from omniloom.pipelines.exporting import benchmarks, hf, lmms_eval, models, start_layout

TARGETS = ("hf", "lmms-eval", "geneval", "transformers")


def export(
    model: str,
    to: str,
    out: str | Path,
    prompts: Path | None = None,
    count: int = 1,
    seed: int = 0,
    start: str | None = None,
) -> list[str]:
    """`to`: one of `TARGETS`; `prompts`, `count` and `seed` go with geneval, `start` with transformers. InputError
    where something does not fit, or `out` is there already."""
    if to not in TARGETS:
        raise InputError(f"expected one of {', '.join(TARGETS)}, got {to!r}", field="--to")
    if to == "geneval" and prompts is None:
        raise InputError("is missing: the benchmark's own file of prompts", field="--prompts")
    if to != "geneval" and (prompts is not None or count != 1 or seed):
        raise InputError(
            "goes with --to geneval", field="--prompts" if prompts else "--count" if count != 1 else "--seed"
        )
    if to != "transformers" and start is not None:
        raise InputError("goes with --to transformers", field=start_layout.OPTION)
    if prompts is not None:
        benchmarks.read_prompts(prompts)  # a wrong file is told before the model is loaded
    loaded = models.load(model)
    folder = models.new_folder(out)
    if to == "geneval":
        assert prompts is not None
        name = benchmarks.export(loaded, folder, prompts, count, seed)
        return [f"{name}: {folder}"]
    if to == "transformers":
        return start_layout.export(loaded, folder, start)
    (hf if to == "hf" else lmms_eval).export(loaded, folder)
    return [
        f"{folder}: " + ("from modeling_omniloom import OmniLoomForGeneration" if to == "hf" else "see its README.md")
    ]
