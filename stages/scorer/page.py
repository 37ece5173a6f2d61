"""The page of a scorer: what it retrieves, and the curves of its training."""

from __future__ import annotations

from typing import Any

from omniloom.stages.reporting import report
from omniloom.stages.reporting.history import series
from omniloom.stages.scorer.config import Config


def render(config: Config, metrics: dict[str, Any], rows: list[dict]) -> str:
    """HTML that needs nothing else."""
    sections: list[dict] = []
    if "recall_at_1" in metrics:
        told = (
            f"How often the own caption of a held-out picture is the nearest among {metrics['retrieval_captions']} "
            "distinct ones of the test split. Other captions may be right too, and count as wrong."
        )
        if config.folds > 1:
            told += f" By the mean of {config.folds} scorers, each trained on the records outside its own fold."
        ends = [metrics.get(f"recall_at_1_{end}") for end in ("low", "high")]
        held = [metrics["recall_at_1"], *ends, metrics["recall_at_1_chance"], metrics["retrieval_pictures"]]
        table = {"columns": ["recall at 1", "95% from", "to", "by chance", "pictures"], "rows": [held]}
        sections.append({"title": "Own caption among others", "text": told, "tables": [table]})
    curves = series(rows)
    shown = [
        {"title": title, "series": found, "log": title == "loss"}
        for title, ends in (("loss", ("loss",)), ("validation recall at 1", ("recall_at_1",)), ("scale", ("scale",)))
        if (found := {name: values for name, values in curves.items() if name.endswith(ends)})
    ]
    if shown:
        sections.append({"title": "Curves", "curves": shown})
    return report.render(
        {
            "title": "Scorer",
            "facts": {"loss": config.loss, "folds": config.folds, "steps": config.steps},
            "headline": {"recall_at_1": metrics["recall_at_1"]} if "recall_at_1" in metrics else {},
            "sections": sections,
        }
    )
