"""Stage `train`: one transformer that predicts the next text token and learns pictures by the objectives that are
chosen, on packed rows.

In: pretokenize's tokens and, for pictures, their tokenizer; a language model's checkpoint where `init_from` names one.
Out: `model/` (all that sampling needs, `models.model`), `report/history.jsonl` (the curves), `report/samples.png`
(validation captions, drawn; `samples_OBJECTIVE.png` by each where there are several).
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError, within
from omniloom.infra.figures import finite
from omniloom.models.unified.config import UnifiedConfig
from omniloom.stages.base import Needs, StageContext
from omniloom.stages.checkpoints.language_model import check_text_tokenizer, local_folder
from omniloom.stages.checkpoints.outside import require_folder_of_weights
from omniloom.stages.checkpoints.text_tokenizer import read_text_tokenizer
from omniloom.stages.data.documents import Documents
from omniloom.stages.train.config import (
    Config,
    SampleConfig,
    expected_config,
    feature_dim,
    unified_config,
    visual_sizes,
)

__all__ = [
    "Config",
    "VERSION",
    "check",
    "check_counts",
    "check_tokens",
    "feature_dim",
    "needs",
    "run",
    "train_worker",
    "unified_config",
    "visual_sizes",
]

VERSION = 3


def needs(config: Config) -> Needs:
    return Needs(
        worker_cpus=config.workers.count * config.workers.cpus, worker_gpus=config.workers.count * config.workers.gpus
    )


@dataclass
class Job:
    """What a training worker gets; picklable."""

    config: Config
    tokens: Artifact
    tokenizer: Artifact | None  # of pictures; none in a pipeline of text alone
    output: str
    state: str
    progress: Any
    tracker: Any


def check(config: Config, upstream: Mapping[str, Any], files: bool = True) -> None:
    """That the tokens hold what is trained on, as far as the configs of pretokenize and the tokenizer tell."""
    from omniloom.stages.train import fits

    if config.trained and "tokenizer" not in upstream:
        raise InputError(
            f"{', '.join(config.trained)} needs a visual tokenizer; configure tokenizer_image and tokenizer_joint, or "
            "set objectives to {} for a language model alone",
            field="objectives",
        )
    tokens, tokenizer = upstream.get("tokens"), upstream.get("tokenizer")
    if tokens is None:
        return
    if config.alignment and not tokens.features:
        raise InputError(
            "needs a frozen encoder's features; set stages.pretokenize.features to its folder", field="alignment"
        )
    if config.init_from and not tokens.text_tokenizer:
        raise InputError(
            "the corpus must be in the ids of that folder; set stages.pretokenize.text_tokenizer to its tokenizer.json",
            field="init_from",
        )
    if config.init_from and not files:
        return
    if config.init_from:
        check_start(config, tokens.text_tokenizer)
    check_alignment(config, expected_config(config, tokens, tokenizer and tokenizer.model))
    fits.check_kinds(config.packing, upstream.get("records"))
    fits.check_pictures(config.packing, config.trained, upstream)


def check_start(config: Config, text_tokenizer: str) -> None:
    """That the checkpoint to start from has weights, and the text tokenizer that the tokens are made with."""
    uri = storage.absolute(config.init_from)
    require_folder_of_weights(uri, "init_from")
    try:
        digest = read_text_tokenizer(storage.absolute(text_tokenizer)).digest
    except Exception:  # pretokenize says so
        return
    check_text_tokenizer(uri, digest)


def check_alignment(config: Config, model: UnifiedConfig) -> None:
    with within():
        if config.alignment:
            config.alignment.check(model.layers)


def check_counts(config: Config, upstream: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
    """That the corpus holds what has a share of training."""
    from omniloom.stages.train import fits

    fits.check_corpus(config.packing, config.trained, counts)


def run(context: StageContext) -> dict:
    from omniloom.infra.training import checkpoint
    from omniloom.infra.training.launch import launch

    tokens, tokenizer = context.tokens, context.tokenizer
    check_tokens(context.config, tokens, tokenizer)
    left_out = left_out_of(context.config, tokens, context.progress)
    checkpoint.check(context.state, context.config.workers.count, {"model": context.config.engine})
    job = Job(context.config, tokens, tokenizer, context.output, context.state, context.progress, context.tracker)
    launch(train_worker, job, context.config.workers, f"train-{context.fingerprint[:12]}", context.work)
    return storage.read_json(storage.join(context.state, "metrics.json")) | left_out


def left_out_of(config: Config, tokens: Artifact, progress: Any) -> dict[str, int]:
    """Counts of the documents that are left out of training and of its validation, which are told; InputError where a
    kind that has a share has none that fits."""
    from omniloom.stages.data.tokens import TokenSet
    from omniloom.stages.train import fits

    arguments = config.packing, config.objectives, config.seed
    left_out = fits.check_tokens(TokenSet(tokens, "train"), *arguments)
    if told := fits.told(left_out):
        progress.note(told)
    return left_out | fits.check_held_out(TokenSet(tokens, "validation"), *arguments)


def check_tokens(config: Config, tokens: Artifact, tokenizer: Artifact | None) -> None:
    """That the tokens can be trained on, and are the tokenizer's; InputError where not."""
    facts = storage.read_json(tokens.file("tokens.json"))
    if tokenizer and facts["visual_digest"] != tokenizer.digest:
        raise InputError(
            f"the tokens were made by another tokenizer ({facts['visual_tokenizer'][:12]}) than "
            f"{tokenizer.stage} {tokenizer.fingerprint[:12]}; run pretokenize again",
            file=tokens.uri,
        )
    if config.init_from:
        check_text_tokenizer(storage.absolute(config.init_from), facts["text_digest"])
    model = unified_config(config, facts["vocab_size"], visual_sizes(facts), facts["specials"])
    feature_dim(config, facts)
    check_alignment(config, model)


class RowLoader:
    """Batches of this rank by step: `at(step)` -> [(micro-batch, seeds)]; `position` is where the next one starts.
    Collates one step ahead."""

    def __init__(
        self,
        tokens,
        planner,
        model_config: UnifiedConfig,
        config: Config,
        rank: int,
        ranks: int,
        position: dict | None,
        device: str = "cpu",
    ):
        from omniloom.stages.data.packing import RowStream

        self.device, self.feature_dim = device, feature_dim(config, tokens.facts)
        self.tokens, self.model_config, self.config, self.rank, self.ranks = tokens, model_config, config, rank, ranks
        self.stream = RowStream(planner, position)
        self.documents = Documents(tokens, model_config, config.loss.task_weights, bool(self.feature_dim))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._ahead: tuple[int, Future] | None = None
        self.position = self.stream.position  # where the step after the last one given starts
        self.ids: list[str] = []

    def _load(self, step: int):
        from omniloom.models.unified.batch import collate
        from omniloom.stages.data.order import hash_seed

        rows = self.stream.take(self.config.batch_rows)
        size = len(rows) // self.ranks
        first = self.rank * size
        micro = size // self.config.workers.accumulate
        batches = []
        for at in range(first, first + size, micro):
            documents = [[self.documents.segments(placed) for placed in row] for row in rows[at : at + micro]]
            # A row's noise depends on its place in the run alone, never on ranks or batches.
            seeds = [hash_seed(self.config.seed, step, number) for number in range(at, at + micro)]
            batches.append(
                (
                    collate(documents, self.config.packing.length, self.model_config, self.device, self.feature_dim),
                    seeds,
                )
            )
        ids = [self.tokens.row(placed.index)["id"][:12] for row in rows[first : first + size] for placed in row[:2]]
        return batches, dict(self.stream.position), ids

    def at(self, step: int) -> list:
        if self._ahead and self._ahead[0] == step:
            batches, self.position, self.ids = self._ahead[1].result()
        else:
            batches, self.position, self.ids = self._load(step)
        self._ahead = (step + 1, self._pool.submit(self._load, step + 1))
        return batches

    def describe(self, step: int) -> str:
        return f"rows with documents {', '.join(self.ids[:8])}"

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def train_worker(job: Job) -> None:
    """The body of one rank: needs a process group, knows nothing of Ray."""
    import torch
    import torch.distributed as dist

    from omniloom.infra.training import checkpoint
    from omniloom.infra.training.engine import Engine, reduce_sum
    from omniloom.infra.training.loop import Loop
    from omniloom.infra.training.peak import peak_tflops
    from omniloom.models.text import TextTokenizer
    from omniloom.models.unified.flops import step_flops
    from omniloom.models.unified.llama.load import is_text_parameter, load_llama
    from omniloom.models.unified.model import UnifiedModel
    from omniloom.models.unified.objectives.alignment import FeatureAlignment
    from omniloom.models.unified.objectives.objective import UnifiedObjective, loss_name, part_of
    from omniloom.stages.data.packing import Planner
    from omniloom.stages.data.tokens import TokenSet
    from omniloom.stages.reporting.history import History

    config, rank, ranks = job.config, dist.get_rank(), dist.get_world_size()
    tokens, held_out = TokenSet(job.tokens, "train"), TokenSet(job.tokens, "validation")
    text = TextTokenizer.load(tokens.text_json)
    model_config = unified_config(config, text.vocab_size, visual_sizes(tokens.facts), text.specials)
    torch.manual_seed(config.seed)
    if config.init_from:
        folder = local_folder(storage.absolute(config.init_from))
        added = read_text_tokenizer(str(folder / "tokenizer.json")).added
        start_from = load_llama(
            folder, new_tokens=added, **{f.name: getattr(model_config, f.name) for f in fields(model_config)}
        )
        model_config = start_from.config  # a file may hold a head of its own where its config says that it is tied
    else:
        start_from = UnifiedModel(model_config)
    aligned = {}
    if config.alignment:
        aligned = {
            "alignment": FeatureAlignment(model_config.width, feature_dim(config, tokens.facts)),
            "alignment_weight": config.alignment.weight,
            "alignment_layer": config.alignment.layer,
        }
    objective = UnifiedObjective(
        start_from,
        config.diffusion,
        **config.loss.model_dump(exclude={"task_weights"}),
        pixel_diffusion=config.pixel_diffusion,
        objectives=config.trained,
        **aligned,
    )
    objective.model.checkpoint_activations = config.engine.activation_checkpointing
    accumulate = config.workers.accumulate

    def lr_scale(name: str) -> float:
        if is_text_parameter(name.removeprefix("model.")):
            return config.lr_scale.text
        # The projection starts at random, so that frozen it would tell hidden states nothing.
        return config.lr_scale.visual or (config.lr_scale.text if name.startswith("alignment.") else 0.0)

    engine = Engine(
        objective,
        config.optimizer,
        config.engine,
        config.steps,
        config.batch_rows // ranks // accumulate,
        accumulate,
        lr_scale,
        part_of,
        objective.compile_parts,
    )
    planner = Planner(tokens, config.packing, config.seed, config.objectives)
    history = History(job.state, job.tracker) if rank == 0 else None
    start, position = 0, {"units": 0.0, "stream": None}
    if found := checkpoint.latest(job.state, job.progress.note):
        checkpoint.load(found, {"model": engine})
        start, position = found["step"], found["position"]
    if history:
        history.rewind(start)
    loader = RowLoader(tokens, planner, model_config, config, rank, ranks, position["stream"], engine.device.type)

    loss_names = {"text": "text_loss", **{name: loss_name(name, config.trained) for name in config.trained}}
    step_names = {**loss_names, "alignment": "alignment_loss"} if config.alignment else loss_names

    def train_step(step: int) -> tuple[dict[str, float], float]:
        micro = loader.at(step)
        totals = reduce_sum(*(sum(batch.targets[name] for batch, _ in micro) for name in step_names))
        # The engine averages gradients over ranks and passes, so totals are divided by that many.
        counts = {name: total / (ranks * accumulate) for name, total in zip(step_names, totals, strict=True)}
        sums: dict[str, float] = {}
        for batch, seeds in micro:
            loss, logs = engine(batch.to(engine.device), seeds, counts)
            engine.backward(loss)
            facts = engine.step(step, part_norms=loop.logs_after(step + 1))
            # A part with few targets weighs little, so that the mean over ranks and passes is the mean over targets.
            # What has no targets in this step has no loss to log.
            shares = ((logged, batch.targets[n] / counts[n]) for n, logged in step_names.items() if counts[n])
            for name, weight in (("loss", 1.0), *shares):
                sums[name] = sums.get(name, 0.0) + float(logs[name]) * weight / accumulate
            sums |= facts
        useful = sum(batch.tokens["text"] + batch.tokens["visual"] for batch, _ in micro)
        places = useful + sum(batch.tokens["padding"] for batch, _ in micro)
        flops = sum(step_flops(model_config, batch) for batch, _ in micro)
        return sums | {"padding": 1 - useful / places, "flops": float(flops)}, useful

    validation = _validation_batches(held_out, config, model_config, engine.device.type)
    captions = _captions(held_out, text, config) if config.trained else []

    def validate(step: int) -> None:
        with engine.evaluated() as module:
            if module is None:
                return
            was_training = module.training
            module.eval()
            metrics = _validate(module, validation, engine, loss_names)
            history.add(metrics, step)
            storage.write_json(storage.join(job.state, "validation.json"), finite(metrics))
            if captions:
                bundle = _bundle(module.model, job, text, tokens.facts, held_out)
                for number, name in enumerate(config.trained):
                    label = f"samples_{name}" if number else "samples"
                    picture = _draw(bundle, captions, config.samples, name)
                    job.tracker.log_image(picture, label, step)
                    storage.write_bytes(storage.join(job.output, "report", f"{label}.png"), picture)
            module.train(was_training)

    peak = config.workers.peak_tflops or peak_tflops(config.engine.precision)

    def log(metrics: dict[str, float], step: int, units: float) -> None:
        if peak:
            metrics["model_flops_utilization"] = metrics["flops_per_second"] / (peak * 1e12 * ranks)
        history.add(metrics, step, units)

    loop = Loop(
        config.steps,
        "tokens",
        config.workers,
        {"model": engine},
        train_step,
        lambda: {"stream": loader.position},
        loader.describe,
        job.state,
        log,
        job.progress,
        {"validate": (config.validate_every, validate)},
        amounts=("flops",),
    )
    last = loop.run(start, position["units"], position.get("last"))
    if rank == 0:
        job.progress.say("saving")
    weights = engine.state_dict()
    if rank == 0:
        model = UnifiedModel(model_config)
        model.load_state_dict(
            {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
        )
        _save(_bundle(model, job, text, tokens.facts, held_out), job, last, history, captions)
    loader.close()
    dist.barrier()


def _validation_batches(held_out, config: Config, model_config: UnifiedConfig, device: str) -> list:
    """Packed rows of the validation split, the same at every validation, where all tasks weigh alike; empty where the
    split holds nothing that fits."""
    from omniloom.models.unified.batch import collate
    from omniloom.stages.data.order import hash_seed
    from omniloom.stages.data.packing import Planner, RowStream

    packing = config.packing.model_copy(
        update={"condition_dropout": 0.0, "noisy_context": 0.0, "window_rows": config.validation_rows}
    )
    planner = Planner(held_out, packing, config.seed, config.objectives, empty=True)
    if not planner.quota:  # what of the split is left out is counted in the stage's metrics
        return []
    rows = RowStream(planner).take(config.validation_rows)
    documents = Documents(held_out, model_config)
    return [
        (
            collate([[documents.segments(placed) for placed in row]], config.packing.length, model_config, device),
            [hash_seed(config.seed, 4, number)],
        )
        for number, row in enumerate(rows)
    ]


def _validate(objective, batches: list, engine, loss_names: dict[str, str]) -> dict[str, float]:
    """Mean losses; `loss_names` maps what is counted to what its loss is called."""
    import torch

    sums, counts = ({name: 0.0 for name in loss_names} for _ in range(2))
    with torch.no_grad(), engine.autocast():
        for batch, seeds in batches:
            _, logs = objective(batch.to(engine.device), seeds)
            for name, logged in loss_names.items():
                sums[name] += float(logs[logged]) * batch.targets[name]
                counts[name] += batch.targets[name]
    return {f"validation_{logged}": sums[name] / counts[name] for name, logged in loss_names.items() if counts[name]}


def _captions(held_out, text, config: Config) -> list[str]:
    """Captions that differ, of pictures drawn by the seed, evenly over sources and labels."""
    from omniloom.stages.data.spread import spread

    found: dict[str, None] = {}
    for index in spread(held_out.table, ("source", "label"), config.seed, held_out.indices("image")):
        if len(found) >= config.samples.count:
            break
        ids = next((token.ids for token in held_out.document(int(index)) if token.kind == "text"), ())
        if len(ids):
            found.setdefault(text.decode(ids))
    return list(found)


def _draw(model, captions: list[str], samples: SampleConfig, objective: str) -> bytes:
    from omniloom.stages.reporting.report import grid

    images = model.text_to_image(captions, samples.visual(objective=objective))
    return grid(list(images), 8, captions)


def _drawn_shape(facts: dict, patch_size: int) -> tuple[int, int]:
    """(height, width) of what is drawn where nothing else is asked for: a square if the tokens have any, else the first
    of their ratios; tokens from before there were ratios are of squares."""
    from omniloom.stages.data.aspects import Aspects, ratio

    aspects = Aspects(tuple(facts.get("aspects", Aspects.names)), patch_size)
    square = next((bucket for bucket, name in enumerate(aspects.names) if ratio(name) == 1), 0)
    return aspects.shape(square, facts["image_size"])


def _bundle(model, job: Job, text, facts: dict, held_out):
    """The model with both tokenizers, as sampling uses it; a language model with its own."""
    from omniloom.models.model import BundleConfig, OmniLoom
    from omniloom.stages.tokenizer.stage import load_tokenizer

    if not job.config.trained:
        config = BundleConfig(model.config, job.config.diffusion, None, (), (), None, objectives=())
        return OmniLoom(config, model, None, text)
    visual = load_tokenizer(job.tokenizer).to(next(model.parameters()).device)
    size = _drawn_shape(facts, visual.config.patch_size)
    config = BundleConfig(
        unified=model.config,
        diffusion=job.config.diffusion,
        tokenizer=visual.config,
        latent_mean=tuple(facts["latent_mean"]),
        latent_std=tuple(facts["latent_std"]),
        image_size=size,
        num_frames=facts["frames"],
        snap_latents=visual.codebook_size is not None,
        objectives=job.config.trained,
        pixel_diffusion=job.config.pixel_diffusion,
        pixel_patch=facts.get("pixel_patch"),
    )
    return OmniLoom(config, model, visual, text)


def _save(bundle, job: Job, last: dict, history, captions: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        bundle.save(folder)
        storage.copy_tree(folder, storage.join(job.output, "model"))
    history.save(storage.join(job.output, "report", "history.jsonl"))
    storage.write_json(storage.join(job.output, "report", "prompts.json"), {"captions": captions})
    validation = storage.read_json(storage.join(job.state, "validation.json")) or {}
    metrics = {
        "steps": job.config.steps,
        **validation,
        **last,
        "parameters": sum(p.numel() for p in bundle.model.parameters()),
    }
    storage.write_json(storage.join(job.state, "metrics.json"), finite(metrics))
