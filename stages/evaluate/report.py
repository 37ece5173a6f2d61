"""The report of `evaluate`. In: an `Evaluation` that has been measured. Out: what `stages.reporting.report.render`
takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.secrets import redact_uris
from omniloom.models.unified.representations import OBJECTIVES
from omniloom.stages.evaluate.comparing import Comparison
from omniloom.stages.evaluate.evaluation import Evaluation
from omniloom.stages.evaluate.figure import HIGH, LOW, Figure
from omniloom.stages.evaluate.gate import Verdict
from omniloom.stages.evaluate.intervals import interval
from omniloom.stages.evaluate.measures import measured
from omniloom.stages.evaluate.swept import Setting, Swept
from omniloom.stages.reporting import ancestry, history, origins, report
from omniloom.stages.studies import objectives as objective_study
from omniloom.stages.studies import quantizers as quantizer_study

_BY_OBJECTIVE = ("image_class_agreement", "caption_accuracy", "image_coverage", "caption_exact")
_RETRIEVAL = ("retrieval_recall_at_1", "retrieval_recall_at_10", "retrieval_mean_rank")
_IN_CARDS = ("drawn_videos", "described_images")  # grids that the report shows picture by picture
_LEFT_OUT = (
    "Documents that the corpus holds and that no packed row has: they are longer than packing.length, have no "
    "caption where caption_first is 0, or are of a kind without a share."
)


def content(
    evaluation: Evaluation,
    verdict: Verdict,
    champion: Comparison | None = None,
    previous: Mapping[str, Artifact | None] | None = None,
) -> dict:
    """`champion`: its figures and the model's, where they were held against each other. `previous`: earlier models to
    hold the configs against, by what they are called."""
    made_of = ancestry.ancestors(evaluation.inputs.values())
    train, metrics = evaluation.inputs["model"].manifest, evaluation.metrics
    headline = (
        *(
            f"{name}{evaluation.suffix(first)}"
            for first in evaluation.objectives[:1]
            for name in ("image_class_agreement", "caption_accuracy", "image_coverage")
        ),
        "bits_per_byte",
        "recon_psnr_image",
        "recon_psnr_video",
        "codebook_usage",
    )
    return {
        "title": f"OmniLoom: {train['pipeline']}",
        "facts": {
            **{artifact.stage: artifact.fingerprint[:12] for artifact in evaluation.inputs.values()},
            "parameters": train["metrics"]["parameters"],
            "trained for": f"{train['times']['seconds']:.0f} s",
            "code": train["code"] or "unknown",
        },
        "verdict": {"text": f"{verdict}.", "passed": verdict.passed},
        "headline": {name: metrics[name] for name in headline if name in metrics},
        "sections": [
            *_figures(evaluation),
            *(_against_champion(champion) if champion else ()),
            *_tables(evaluation),
            *_networks(evaluation),
            *_sweep(evaluation),
            *_pictures(evaluation),
            *_studies(evaluation.inputs),
            *origins.sections(made_of, evaluation.inputs.get("records"), previous or {}),
            *_training(evaluation.inputs, made_of),
        ],
    }


def _figures(evaluation: Evaluation) -> list[dict]:
    """The figures with their meanings, and apart from them the counts."""
    known = {
        name: figure
        for name, figure in measured(evaluation.config, evaluation.objectives, "scorer" in evaluation.inputs).items()
        if name in evaluation.metrics
    }
    split = evaluation.config.split
    text = f"Measured on items of the {split} split, drawn by the seed, evenly over sources and labels."
    if not known:
        text = f"Nothing was measured: the {split} split holds none of what the model was trained on."
    if missing := [name for name in known if evaluation.metrics[name] is None]:
        text += f" Not a number: {', '.join(missing)}."
    rows = [
        [
            name,
            evaluation.metrics[name],
            _interval(evaluation.metrics, name),
            f"{figure.better} is better",
            *_held_against(figure, evaluation.metrics),
            figure.meaning,
        ]
        for name, figure in known.items()
        if figure.better
    ]
    columns = ["figure", "value", "95% interval", "", "held against", "", "meaning"]
    tables = [{"columns": columns, "rows": rows}] if rows else []
    counts = [[name, evaluation.metrics[name], figure.meaning] for name, figure in known.items() if not figure.better]
    tables += [{"columns": ["mark or count", "value", "meaning"], "rows": counts}] if counts else []
    return [{"title": "Metrics", "text": text, "tables": tables}]


def _interval(metrics: dict, name: str) -> str:
    ends = metrics.get(name + LOW), metrics.get(name + HIGH)
    return " to ".join(f"{end:.3g}" for end in ends) if None not in ends else ""


def _against_champion(found: Comparison) -> list[dict]:
    rows = [
        [
            figure.measure,
            figure.first,
            figure.second,
            figure.difference,
            "" if figure.low is None else f"{figure.low:+.3g} to {figure.high:+.3g}",
            figure.p,
            figure.decision,
        ]
        for figure in found.figures
    ]
    return [
        {
            "title": "Against the champion",
            "text": "Paired by held-out item; p is adjusted for the number of figures. The decision is of this model.",
            "tables": [
                {
                    "columns": ["figure", "champion", "this model", "difference", "95% interval", "p", "decision"],
                    "rows": rows,
                }
            ],
        }
    ]


def _held_against(figure: Figure, metrics: dict) -> tuple:
    value = figure.chance(metrics)
    return (None, "") if value is None else (value, figure.mark)


def _tables(evaluation: Evaluation) -> list[dict]:
    metrics, side = evaluation.metrics, evaluation.config.class_pixels
    sections = []
    if len(evaluation.objectives) > 1:
        sections.append({"title": "Objectives", "tables": [_by_objective(evaluation, _BY_OBJECTIVE)]})
    distance = f"frechet_pixels{side}"
    if f"{distance}_train" in metrics:
        sections.append(
            {
                "title": "Fréchet distance",
                "text": f"Between {metrics['frechet_pictures']} held-out pictures and as many others, in a space of "
                f"its own: the pixels of pictures shrunken to {side}x{side}. Lower is nearer. The train pictures are "
                "the floor: real ones that the model was not asked for.",
                "tables": [_by_objective(evaluation, (distance,), {"train pictures": [metrics[f"{distance}_train"]]})],
            }
        )
    if "retrieval_captions" in metrics:
        chance = [metrics[f"{name}_chance"] for name in _RETRIEVAL]
        order = (
            "pointwise mutual information with the picture under the model"
            if evaluation.knows_captions
            else "likelihood behind the picture (captions before pictures were not trained, so that how common a "
            "caption is cannot be taken off)"
        )
        sections.append(
            {
                "title": "Captions retrieved",
                "text": f"Where a held-out picture's own caption comes among {metrics['retrieval_captions']} distinct "
                f"ones, in the order of their {order}. Other captions may be right too, and count as wrong.",
                "tables": [_by_objective(evaluation, _RETRIEVAL, {"a random order": chance})],
            }
        )
    return sections


def _networks(evaluation: Evaluation) -> list[dict]:
    """The feature networks, with what is done to pictures before them."""
    if (networks := evaluation.networks) is None:
        return []
    rows = [[net.name, redact_uris(net.uri), net.preprocessing] for net in networks.used]
    if networks.lpips and (files := evaluation.config.features and evaluation.config.features.lpips):
        told = "pictures as they are, in [-1, 1]; LPIPS of VGG-16 with the heads given"
        rows.append(["lpips", redact_uris(files.vgg), told])
    text = "Networks in whose features is measured. Pictures come to them in the shapes that the model was trained in"
    text += f", videos as {evaluation.facts['frames']} frames." if networks.i3d else "."
    tables = [{"columns": ["network", "file", "what is done to a picture before it, and what it gives"], "rows": rows}]
    return [{"title": "Feature networks", "text": text, "tables": tables}]


def _sweep(evaluation: Evaluation) -> list[dict]:
    """What sampling costs: figures of every setting against the seconds of a picture, and which was chosen."""
    if (swept := evaluation.sweep) is None:
        return []
    names = list(swept.best)
    rows = [
        [
            setting.name + (" (chosen)" if number == swept.chosen else ""),
            setting.seconds,
            *(_value(setting, name, number == swept.best[name], evaluation.config.seed) for name in names),
        ]
        for number, setting in enumerate(swept.settings)
    ]
    text = (
        f"{swept.pictures} pictures by each setting, of the same captions from the same noise. Chosen is the one that "
        "takes the fewest seconds a picture of those that a paired test calls worse by no figure than that figure's "
        "best setting; it is what the model of this evaluation draws by where nothing else is asked for."
    )
    return [
        {
            "title": "What sampling costs",
            "text": text,
            "tables": [{"columns": ["setting", "seconds a picture", *names], "rows": rows}],
            "curves": [
                {"title": name, "series": series, "x": "seconds a picture", "y": name}
                for name, series in _costs(swept).items()
            ],
        }
    ]


def _value(setting: Setting, name: str, best: bool, seed: int) -> str:
    low, high = interval(setting.figures[name], seed) or (None, None)
    ends = "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"
    told = ", the best" if best else ", worse" if name in setting.worse else ""
    return f"{setting.figures[name].mean:.4g}{ends}{told}"


def _costs(swept: Swept) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """By figure and by guidance and sampler: (seconds a picture, figure) over the steps."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name in swept.best:
        for setting in swept.settings:
            line = f"guidance {setting.fields['guidance_scale']:g}, {setting.fields['sampler']}"
            found.setdefault(name, {}).setdefault(line, []).append((setting.seconds, setting.figures[name].mean))
    return found


def sweep_chart(swept: Swept) -> str:
    """The first figure of a sweep against the seconds of a picture, as a drawing of its own (SVG) with a legend."""
    name, series = next(iter(_costs(swept).items()))
    drawn = str(report.chart(series, "seconds a picture", name)).partition("</svg>")[0]
    colours = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#17becf")
    style = "".join(f".c{number}{{stroke:{colour}}}" for number, colour in enumerate(colours))
    style += ".line{fill:none;stroke-width:2}.grid{stroke:#ccc}text{font:11px sans-serif}"
    legend = "".join(
        f"<text x='72' y='{24 + 14 * number}' fill='{colours[number % len(colours)]}'>{line}</text>"
        for number, line in enumerate(series)
    )
    drawn = drawn.replace("<svg ", "<svg xmlns='http://www.w3.org/2000/svg' ", 1)
    return drawn.replace(">", f"><style>{style}</style>", 1) + legend + "</svg>"


def _by_objective(evaluation: Evaluation, names: tuple[str, ...], more: dict[str, list] | None = None) -> dict:
    """Figures of what was trained on pictures, one objective a row, and other rows below them."""
    names = tuple(
        name
        for name in names
        if any(f"{name}{evaluation.suffix(o)}" in evaluation.metrics for o in evaluation.objectives)
    )
    rows = [
        [objective, *(evaluation.metrics.get(f"{name}{evaluation.suffix(objective)}") for name in names)]
        for objective in evaluation.objectives
    ]
    return {"columns": ["objective", *names], "rows": rows + [[name, *row] for name, row in (more or {}).items()]}


def _pictures(evaluation: Evaluation) -> list[dict]:
    sections = []
    for title, prefixes in (
        ("Drawn from captions", ("drawn_images", "drawn_videos")),
        ("Described", ("described_images",)),
        ("Reconstructed: original above, reconstruction below", ("reconstructed_images", "reconstructed_videos")),
    ):
        found: list[dict[str, Any]] = [
            {"png": png, "caption": name.replace("_", " ")}
            for prefix in prefixes
            for name, png in evaluation.pictures.items()
            if name.startswith(prefix)
        ]
        cards = [card for prefix in prefixes for card in evaluation.cards.get(prefix, ())]
        if cards:  # one picture each, with what was asked for or written: they find room on a phone too
            found = [image for image in found if not image["caption"].replace(" ", "_").startswith(_IN_CARDS)]
        if found or cards:
            shown = {"images": found} if found else {}
            sections.append({"title": title, **shown, **({"cards": cards} if cards else {})})
    if evaluation.text_samples:
        sections.append({"title": "Text", "samples": evaluation.text_samples})
    return sections


def _studies(inputs: dict[str, Artifact]) -> list[dict]:
    return [
        {"title": title, "tables": [module.table(storage.read_json(inputs[name].file("study.json")))]}
        for title, name, module in (
            ("Quantizers", "quantizer_study", quantizer_study),
            ("Objectives at equal budget", "objective_study", objective_study),
        )
        if name in inputs
    ]


def _training(inputs: dict[str, Artifact], made_of: Sequence[Artifact]) -> list[dict]:
    """The curves of every training on the way to the model, and what was left out on it."""
    curves = [
        {"title": f"Curves of {artifact.stage}", "curves": _curves(artifact)}
        for artifact in made_of
        if any(entry["path"] == "report/history.jsonl" for entry in artifact.manifest["files"])
    ]
    left_out = [[name, count] for name, count in inputs["model"].metrics.items() if "left_out_" in name]
    bad = [section for name in ("tokenizer", "model") if name in inputs for section in _bad_steps(inputs[name])]
    return [*curves, *bad] + (
        [
            {
                "title": "Left out of training",
                "text": _LEFT_OUT,
                "tables": [{"columns": ["kind and reason", "documents"], "rows": left_out}],
            }
        ]
        if left_out
        else []
    )


def _bad_steps(artifact: Artifact) -> list[dict]:
    """The bad steps of a training, and the documents that were left out for them; no section where there were none."""
    counts = [artifact.metrics.get(name, 0) for name in ("bad_steps", "steps_left_out", "documents_left_out")]
    if not counts[0]:
        return []
    found = (storage.read_json(artifact.file("report", "bad_steps.json")) or {}).get("found", [])
    rows = [
        [bad["step"], bad["why"], bad["action"], ", ".join(map(_place, bad["documents"])) or "none by name"]
        for bad in found
    ]
    return [
        {
            "title": f"Bad steps of {artifact.stage}",
            "text": f"{counts[0]} bad steps; left out in training: {counts[1]} steps, {counts[2]} documents.",
            "tables": [{"columns": ["step", "why", "what followed", "documents left out"], "rows": rows}],
        }
    ]


def _place(document: dict) -> str:
    """The source and file of a document, or its id."""
    return f"{document['source']}: {document['path']}" if document.get("path") else document["id"][:12]


def _curves(artifact: Artifact) -> list[dict]:
    found = history.series(history.load(artifact.file("report", "history.jsonl")))
    losses = ("text_loss", "visual_loss", *(f"{name}_loss" for name in OBJECTIVES))
    groups = {
        "loss": ("loss", *losses, *(f"validation_{name}" for name in losses), "image_loss", "video_loss"),
        "psnr": ("image_psnr", "video_psnr", "validation_psnr_image", "validation_psnr_video"),
        "gradient norm": ("grad_norm",),
        "bad steps": ("bad_steps",),
        "learning rate": ("lr",),
    }
    curves = []
    for title, names in groups.items():
        chosen = {name: found[name] for name in names if name in found}
        if chosen:
            curves.append({"title": title, "series": chosen, "log": title == "loss"})
    return curves
