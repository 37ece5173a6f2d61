"""Optional stage `latents`: what a tokenizer's latents are like, before a generator is paid for.

In: records, and the tokenizer that the stages before it trained last. Out: `figures.json`, `report.html` and
`pictures.png`: distances of reconstructions, of pictures half way between neighbours and of perturbed ones, the
variance that a flow on the latents cannot predict, their spectrum and dimension, what a linear probe reads in them, and
bits beside lossless coding. A sweep over tokenizers that names the stage in `foretell` shows which of these foretold
how good each one's generator became.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError
from omniloom.infra.figures import finite
from omniloom.infra.training.config import WorkersConfig
from omniloom.infra.training.launch import launch
from omniloom.stages.base import Needs, StageContext
from omniloom.stages.checkpoints.outside import require_weights
from omniloom.stages.evaluate.figure import HIGH, LEAST_PICTURES, LOW
from omniloom.stages.latents.config import Config

__all__ = ["MEANINGS", "VERSION", "Config", "check", "check_counts", "needs", "run", "summary"]

VERSION = 1

MEANINGS = {
    "psnr": ("dB of a reconstruction, the mean over pictures", "higher"),
    "ssim": ("structural similarity of a reconstruction, up to 1", "higher"),
    "rfid": ("Fréchet distance of reconstructions to the originals", "lower"),
    "ifid": ("the same of pictures decoded half way to their nearest neighbour's latents (2603.05630)", "lower"),
    "pfid": ("the same of pictures decoded from perturbed codes or latents (2503.08354)", "lower"),
    "equivariance_psnr": ("dB between the picture of turned latents and the turned picture (2502.09509)", "higher"),
    "viv": ("variance of a flow's velocity that a noisy latent leaves open, a number (2606.03578)", "lower"),
    "viv_position": ("the same of a position by itself", "lower"),
    "intrinsic_dimension": ("dimension by the two nearest neighbours (1803.06992)", None),
    "latent_numbers": ("numbers of a picture's latents", None),
    "spectrum_slope": ("of log power over log frequency; 0 is white noise", None),
    "probe_accuracy": ("share of labels that a linear classifier of latents names", "higher"),
    "codebook_usage": ("share of the codes that occur", "higher"),
    "bits_codes": ("bits a pixel that the codes can say at most", None),
    "bits_entropy": ("bits a pixel by how often each code occurs", None),
    "bits_png": ("bits a pixel of PNG", None),
    "bits_webp": ("bits a pixel of lossless WebP", None),
}


@dataclass
class LatentsJob:
    """The worker's argument; picklable. `output` and `state` are URIs of the stage's work folder."""

    config: Config
    records: Artifact
    tokenizer: Artifact
    output: str
    state: str
    progress: Any
    tracker: Any


def needs(config: Config) -> Needs:
    return Needs(worker_cpus=config.cpus, worker_gpus=config.gpus, workers=1)


def check(config: Config, upstream: Mapping[str, Any], files: bool = True) -> None:
    """Check that there are pictures, and that the tokenizer's patch divides their size."""
    kinds = getattr(upstream.get("records"), "kinds", None)
    if kinds is not None and "image" not in kinds:
        raise InputError("measures pictures, and no source of stages.ingest.sources gives any")
    patch = getattr(getattr(upstream.get("tokenizer"), "model", None), "patch_size", None)
    if patch and config.size % patch:
        raise InputError(f"expected a multiple of the tokenizer's patch {patch}, got {config.size}", field="size")
    if files and config.inception:
        require_weights(config.inception, "inception")


def check_counts(config: Config, upstream: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
    number = counts.get(f"records_{config.split}")
    if number is not None and number < LEAST_PICTURES:
        raise InputError(
            f"expected at least {LEAST_PICTURES} pictures in the {config.split} split, got {number}", field="split"
        )


def run(context: StageContext) -> dict:
    config: Config = context.config
    done = storage.join(context.output, "figures.json")
    if not storage.exists(done):
        assert context.tokenizer  # `check` has seen that one is made
        job = LatentsJob(
            config,
            context.records,
            context.tokenizer,
            context.output,
            context.state,
            context.progress,
            context.tracker,
        )
        workers = WorkersConfig(count=1, cpus=config.cpus, gpus=config.gpus)
        launch(measure_worker, job, workers, f"{context.stage}-{context.fingerprint[:12]}", context.state)
    return storage.load_json(done)


def measure_worker(job: LatentsJob) -> None:
    import torch

    from omniloom.stages.latents.measuring import Measuring

    device = "cuda" if job.config.gpus and torch.cuda.is_available() else "cpu"
    measured = Measuring(job.config, job.records, job.tokenizer, device)(job.progress.say)
    html = _report(job, measured)
    storage.write_bytes(storage.join(job.output, "pictures.png"), measured.picture)
    storage.write_bytes(storage.join(job.output, "report.html"), html.encode())
    job.tracker.log_image(measured.picture, "latents")
    job.tracker.log_text(html, "report.html")
    storage.write_json(storage.join(job.output, "figures.json"), finite(measured.figures))


def summary(metrics: dict) -> str:
    shown = [f"{name} {metrics[name]:.3g}" for name in ("psnr", "rfid", "ifid", "pfid", "viv") if name in metrics]
    return ", ".join(shown)


def _report(job: LatentsJob, measured: Any) -> str:
    from omniloom.stages.reporting import report

    found = measured.figures
    rows = [
        [name, found[name], found.get(name + LOW), found.get(name + HIGH), better or "-", meaning]
        for name, (meaning, better) in MEANINGS.items()
        if name in found
    ]
    columns = ["figure", "value", "95% from", "to", "better", "what it is"]
    sections: list[dict[str, Any]] = [{"title": "Figures", "tables": [{"columns": columns, "rows": rows}]}]
    told = "Originals, reconstructions, half way to the nearest neighbour, perturbed"
    sections.append({"title": "Pictures", "images": [{"png": measured.picture, "caption": told}]})
    if measured.spectrum is not None:
        points = [(float(frequency), float(power)) for frequency, power in enumerate(measured.spectrum, 1)]
        curve = {"title": "Power of the latents", "x": "frequency", "series": {"power": points}, "log": True}
        sections.append({"title": "Spectrum", "curves": [curve]})
    facts = {"pictures": f"{job.config.split} split, {job.config.size}x{job.config.size}"}
    return report.render({"title": "A tokenizer's latents", "facts": facts, "sections": sections})
