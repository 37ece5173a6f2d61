"""Stage `train`: one transformer that predicts the next text token and learns pictures by the objectives that are
chosen, on packed rows.

In: pretokenize's tokens and, for pictures, their tokenizer; a language model's checkpoint where `init_from` names one.
Out: `model/` (all that sampling needs, `models.bundle`), `report/history.jsonl` (the curves), `report/samples.png`
(validation captions, drawn; `samples_OBJECTIVE.png` by each where there are several).
"""
from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from infra import storage
from infra.artifacts import Artifact
from infra.errors import InputError
from infra.figures import finite
from infra.training.config import EngineConfig, OptimizerConfig, WorkersConfig
from models.unified.config import UnifiedConfig
from models.unified.diffusion_config import PIXEL_DIFFUSION, DiffusionConfig, pixel_fields
from models.unified.representations import OBJECTIVES, REPRESENTATIONS, Objective, patch_numbers
from stages.base import PLACEMENT, Needs, StageContext
from stages.documents import Documents
from stages.packing import PackingConfig, Task
from stages.starting import check_text_tokenizer, local_folder, start_config

VERSION = 3

# The architecture as far as it is a choice: vocabulary and what pictures are made of come from the tokens.
_FROM_INPUTS = ("vocab_size", "latent_dim", "pixel_dim", "codebook_size", "specials")
_HINTS = get_type_hints(UnifiedConfig)
ArchitectureConfig = create_model(
    "ArchitectureConfig", __config__=ConfigDict(extra="forbid"),
    **{f.name: (_HINTS[f.name], f.default) for f in fields(UnifiedConfig) if f.name not in _FROM_INPUTS})


class LossConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text_weight: float = Field(1.0, ge=0)
    visual_weight: float = Field(5.0, ge=0)
    z_loss: float = Field(0.0, ge=0)
    task_weights: dict[Task, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="by what a document is arranged as (text, draw, describe, document): factor "
        "of the losses of its targets, 1 where it is not named; means go over all targets as without it")
    objective_weights: dict[Objective, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="by objective; what is not named has visual_weight where it is a diffusion, "
        "text_weight where it is on codes")


def _pixel_diffusion(value: Any) -> Any:
    """What is left out of a mapping is the default of pixels, not of latents."""
    return pixel_fields(value) if isinstance(value, dict) else value


class LearningRateConfig(BaseModel):
    """Learning rates of the model's parts as multiples of `optimizer.lr`; 0 freezes a part. `text` is what a language
    model consists of: vocabulary, blocks and head; `visual` is what takes pictures in and gives them out."""

    model_config = ConfigDict(extra="forbid")
    text: float = Field(1.0, ge=0)
    visual: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _something_is_trained(self) -> LearningRateConfig:
        if not self.text and not self.visual:
            raise ValueError("text and visual are both 0, which leaves nothing to train")
        return self


class AlignmentConfig(BaseModel):
    """Hidden states of diffusions' targets are drawn towards the features that pretokenize.features keeps (REPA)."""

    model_config = ConfigDict(extra="forbid")
    weight: float = Field(0.5, ge=0)
    layer: int | None = Field(None, ge=1, description="blocks behind which the states are taken; null takes a third of "
                              "them")

    def check(self, layers: int) -> None:
        """ValueError where a model of that many layers has no such block."""
        if self.layer and self.layer > layers:
            raise ValueError(f"alignment.layer: expected at most the model's {layers}, got {self.layer}")


class SampleConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")
    count: int = Field(16, ge=0, description="validation captions that are drawn")
    num_steps: int = Field(20, ge=1)
    guidance_scale: float = Field(2.0, ge=0)


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: ArchitectureConfig = Field(default_factory=ArchitectureConfig)
    init_from: str | None = Field(None, description="URI of a Llama, Mistral or Qwen folder to start from: config.json,"
                                  " safetensors, tokenizer.json; of `model`, only what it lacks is read")
    lr_scale: LearningRateConfig = Field(default_factory=LearningRateConfig)
    objectives: dict[Objective, Annotated[float, Field(ge=0)]] = Field(
        default_factory=lambda: {"latent_diffusion": 1.0}, description="what is trained on pictures, by shares of the "
        "documents: latent_diffusion, pixel_diffusion, next_code, masked_code; without any it is a language model, "
        "trained on texts alone")
    diffusion: DiffusionConfig = Field(default_factory=DiffusionConfig, description="of latents")
    pixel_diffusion: Annotated[DiffusionConfig, BeforeValidator(_pixel_diffusion)] = Field(
        PIXEL_DIFFUSION, description="of raw pixels, which pretokenize.pixel_patch keeps")
    alignment: AlignmentConfig | None = None
    loss: LossConfig = Field(default_factory=LossConfig)
    packing: PackingConfig = Field(default_factory=PackingConfig)
    batch_rows: int = Field(32, ge=1, description="packed rows an optimizer step, over all workers")
    steps: int = Field(100_000, ge=1)
    seed: int = Field(0, ge=0)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    engine: EngineConfig = Field(default_factory=lambda: EngineConfig(ema_decay=0.999))
    workers: WorkersConfig = Field(default_factory=WorkersConfig, json_schema_extra=PLACEMENT)
    validate_every: int = Field(500, ge=1, json_schema_extra=PLACEMENT, description="steps between validations")
    validation_rows: int = Field(16, ge=1, json_schema_extra=PLACEMENT)
    samples: SampleConfig = Field(default_factory=SampleConfig, json_schema_extra=PLACEMENT)

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if not self.trained and (shares := [kind for kind, share in self.packing.mixture.items()
                                            if share and kind != "text"]):
            raise ValueError(f"packing.mixture: {', '.join(shares)} holds pictures, and objectives names none to train "
                             "on them")
        if unknown := set(self.loss.objective_weights) - set(self.trained):
            raise ValueError(f"loss.objective_weights: {', '.join(sorted(unknown))} has no share in objectives")
        if self.alignment and all(OBJECTIVES[name].representation.discrete for name in self.trained):
            raise ValueError("alignment: expected null without a share of latent_diffusion or pixel_diffusion, whose "
                             "pictures it is of")
        if not self.init_from:
            model = unified_config(self, 1 << 20, {name: 1 for name in _SIZES}, None)
            if self.alignment:
                self.alignment.check(model.layers)
        parts = self.workers.count * self.workers.accumulate
        if self.batch_rows % parts:
            raise ValueError(f"batch_rows {self.batch_rows} does not divide by workers.count * accumulate = {parts}")
        return self


    @property
    def trained(self) -> tuple[str, ...]:
        """The objectives that have a share, in the order of their table."""
        return tuple(name for name in OBJECTIVES if self.objectives.get(name))


_SIZES = tuple(row.size for row in REPRESENTATIONS.values())


def visual_sizes(facts: dict) -> dict[str, int | None]:
    """The sizes of each representation of pictures in the tokens that `facts` (tokens.json) are about."""
    patch = facts.get("pixel_patch")
    return {"latent_dim": len(facts["latent_mean"]) or None, "pixel_dim": patch and patch_numbers(patch),
            "codebook_size": facts.get("codebook_size")}


def feature_dim(config: Config, facts: dict) -> int | None:
    """Channels of the features in the tokens that `facts` are about; None where they are not trained on."""
    if not config.alignment:
        return None
    if not facts.get("feature_dim"):
        raise InputError("the tokens hold no features; set stages.pretokenize.features", field="stages.train.alignment")
    return facts["feature_dim"]


def unified_config(config: Config, vocab_size: int, sizes: dict[str, int | None],
                   specials: dict | None) -> UnifiedConfig:
    """The model's config; of the `sizes` of pictures' representations it has those that the objectives need. Where
    training starts from a checkpoint, its config.json is read."""
    sizes = {name: value for name, value in sizes.items()
             if any(OBJECTIVES[objective].representation.size == name for objective in config.trained)}
    for objective in config.trained:
        if sizes[OBJECTIVES[objective].representation.size] is None:
            missing = {"latent_dim": "the tokens are of texts alone, made without a visual tokenizer",
                       "pixel_dim": "the tokens hold no raw pixels; set stages.pretokenize.pixel_patch",
                       "codebook_size": "the visual tokenizer is continuous and has no codes"
                       }[OBJECTIVES[objective].representation.size]
            raise InputError(f"{objective} cannot be trained: {missing}", field="stages.train.objectives")
    if config.init_from:
        # A default is no wish: only what is written in the config can contradict the checkpoint.
        chosen = {name: value for name in config.model.model_fields_set
                  if (value := getattr(config.model, name)) is not None}
        return start_config(storage.absolute(config.init_from), chosen, vocab_size, {"latent_dim": None, **sizes},
                            specials)
    given = {"specials": specials} if specials else {}
    return UnifiedConfig(vocab_size=vocab_size, **sizes, **given, **config.model.model_dump())


def needs(config: Config) -> Needs:
    return Needs(worker_cpus=config.workers.count * config.workers.cpus,
                 worker_gpus=config.workers.count * config.workers.gpus)


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


def run(context: StageContext) -> dict:
    from infra.training import checkpoint
    from infra.training.launch import launch

    tokens, tokenizer = context.inputs["pretokenize"], context.tokenizer
    check(context.config, tokens, tokenizer)
    left_out = check_fits(context.config, tokens, context.progress)
    checkpoint.check(context.state, context.config.workers.count, {"model": context.config.engine}, context.stage)
    job = Job(context.config, tokens, tokenizer, context.output, context.state, context.progress, context.tracker)
    launch(train_worker, job, context.config.workers, f"train-{context.fingerprint[:12]}", context.work)
    return storage.read_json(storage.join(context.state, "metrics.json")) | left_out


def check_fits(config: Config, tokens: Artifact, progress: Any, field: str = "stages.train") -> dict[str, int]:
    """Counts of the documents that are left out of training and of its validation, which are told; InputError where a
    kind that has a share has none that fits."""
    from stages import fits
    from stages.tokens import TokenSet

    arguments = config.packing, config.objectives, config.seed
    left_out = fits.check_tokens(TokenSet(tokens, "train"), *arguments, field)
    if told := fits.told(left_out):
        progress.note(told)
    return left_out | fits.check_held_out(TokenSet(tokens, "validation"), *arguments)


def check(config: Config, tokens: Artifact, tokenizer: Artifact | None) -> None:
    """That the tokens can be trained on, and are the tokenizer's; InputError where not."""
    facts = storage.read_json(tokens.file("tokens.json"))
    if tokenizer and facts["visual_digest"] != tokenizer.digest:
        raise InputError(f"the tokens were made by another tokenizer ({facts['visual_tokenizer'][:12]}) than "
                         f"{tokenizer.stage} {tokenizer.fingerprint[:12]}; run pretokenize again", file=tokens.uri)
    if config.init_from:
        check_text_tokenizer(storage.absolute(config.init_from), facts["text_digest"])
    model = unified_config(config, facts["vocab_size"], visual_sizes(facts), facts["specials"])
    feature_dim(config, facts)
    try:
        if config.alignment:
            config.alignment.check(model.layers)
    except ValueError as error:
        raise InputError(str(error), field="stages.train") from None


class RowLoader:
    """Batches of this rank by step: `at(step)` -> [(micro-batch, seeds)]; `position` is where the next one starts.
    Collates one step ahead."""

    def __init__(self, tokens, planner, model_config: UnifiedConfig, config: Config, rank: int, ranks: int,
                 position: dict | None, device: str = "cpu"):
        from stages.packing import RowStream

        self.device, self.feature_dim = device, feature_dim(config, tokens.facts)
        self.tokens, self.model_config, self.config, self.rank, self.ranks = tokens, model_config, config, rank, ranks
        self.stream = RowStream(planner, position)
        self.documents = Documents(tokens, model_config, config.loss.task_weights, bool(self.feature_dim))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._ahead: tuple[int, Future] | None = None
        self.position = self.stream.position  # where the step after the last one given starts
        self.ids: list[str] = []

    def _load(self, step: int):
        from models.unified.batch import collate
        from stages.order import hash_seed

        rows = self.stream.take(self.config.batch_rows)
        size = len(rows) // self.ranks
        first = self.rank * size
        micro = size // self.config.workers.accumulate
        batches = []
        for at in range(first, first + size, micro):
            documents = [[self.documents.segments(placed) for placed in row] for row in rows[at:at + micro]]
            # A row's noise depends on its place in the run alone, never on ranks or batches.
            seeds = [hash_seed(self.config.seed, step, number) for number in range(at, at + micro)]
            batches.append((collate(documents, self.config.packing.length, self.model_config, self.device,
                                    self.feature_dim), seeds))
        ids = [self.tokens.row(placed.index)["id"][:12] for row in rows[first:first + size] for placed in row[:2]]
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

    from infra.training import checkpoint
    from infra.training.engine import Engine, reduce_sum
    from infra.training.loop import Loop
    from infra.training.peak import peak_tflops
    from models.text import TextTokenizer
    from models.unified.alignment import FeatureAlignment
    from models.unified.flops import step_flops
    from models.unified.llama import is_text_parameter, load_llama
    from models.unified.model import UnifiedModel
    from models.unified.objective import UnifiedObjective, loss_name, part_of
    from stages.history import History
    from stages.packing import Planner
    from stages.text_tokenizer import read_text_tokenizer
    from stages.tokens import TokenSet

    config, rank, ranks = job.config, dist.get_rank(), dist.get_world_size()
    tokens, held_out = TokenSet(job.tokens, "train"), TokenSet(job.tokens, "validation")
    text = TextTokenizer.load(tokens.text_json)
    model_config = unified_config(config, text.vocab_size, visual_sizes(tokens.facts), text.specials)
    torch.manual_seed(config.seed)
    if config.init_from:
        folder = local_folder(storage.absolute(config.init_from))
        added = read_text_tokenizer(str(folder / "tokenizer.json")).added
        start_from = load_llama(folder, new_tokens=added,
                                **{f.name: getattr(model_config, f.name) for f in fields(model_config)})
        model_config = start_from.config  # a file may hold a head of its own where its config says that it is tied
    else:
        start_from = UnifiedModel(model_config)
    aligned = {}
    if config.alignment:
        aligned = {"alignment": FeatureAlignment(model_config.width, feature_dim(config, tokens.facts)),
                   "alignment_weight": config.alignment.weight, "alignment_layer": config.alignment.layer}
    objective = UnifiedObjective(start_from, config.diffusion, **config.loss.model_dump(exclude={"task_weights"}),
                                 pixel_diffusion=config.pixel_diffusion, objectives=config.trained, **aligned)
    objective.model.checkpoint_activations = config.engine.activation_checkpointing
    accumulate = config.workers.accumulate

    def lr_scale(name: str) -> float:
        if is_text_parameter(name.removeprefix("model.")):
            return config.lr_scale.text
        # The projection starts at random, so that frozen it would tell hidden states nothing.
        return config.lr_scale.visual or (config.lr_scale.text if name.startswith("alignment.") else 0.0)

    engine = Engine(objective, config.optimizer, config.engine, config.steps, config.batch_rows // ranks // accumulate,
                    accumulate, lr_scale, part_of, objective.compile_parts)
    planner = Planner(tokens, config.packing, config.seed, config.objectives)
    history = History(job.state, job.tracker) if rank == 0 else None
    start, position = 0, {"units": 0.0, "stream": None}
    if found := checkpoint.latest(job.state, job.progress.note):
        checkpoint.load(found, {"model": engine})
        start, position = found["step"], found["position"]
    if history:
        history.rewind(start)
    loader = RowLoader(tokens, planner, model_config, config, rank, ranks, position["stream"],
                       engine.device.type)

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

    loop = Loop(config.steps, "tokens", config.workers, {"model": engine}, train_step,
                lambda: {"stream": loader.position}, loader.describe, job.state,
                log, job.progress, {"validate": (config.validate_every, validate)}, amounts=("flops",))
    last = loop.run(start, position["units"], position.get("last"))
    if rank == 0:
        job.progress.say("saving")
    weights = engine.state_dict()
    if rank == 0:
        model = UnifiedModel(model_config)
        model.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()
                               if name.startswith("model.")})
        _save(_bundle(model, job, text, tokens.facts, held_out), job, last, history, captions)
    loader.close()
    dist.barrier()


def _validation_batches(held_out, config: Config, model_config: UnifiedConfig, device: str) -> list:
    """Packed rows of the validation split, the same at every validation, where all tasks weigh alike; empty where the
    split holds nothing that fits."""
    from models.unified.batch import collate
    from stages.order import hash_seed
    from stages.packing import Planner, RowStream

    packing = config.packing.model_copy(update={"condition_dropout": 0.0, "noisy_context": 0.0,
                                                "window_rows": config.validation_rows})
    planner = Planner(held_out, packing, config.seed, config.objectives, empty=True)
    if not planner.quota:  # what of the split is left out is counted in the stage's metrics
        return []
    rows = RowStream(planner).take(config.validation_rows)
    documents = Documents(held_out, model_config)
    return [(collate([[documents.segments(placed) for placed in row]], config.packing.length, model_config, device),
             [hash_seed(config.seed, 4, number)]) for number, row in enumerate(rows)]


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
    from stages.spread import spread

    found: dict[str, None] = {}
    for index in spread(held_out.table, ("source", "label"), config.seed, held_out.indices("image")):
        if len(found) >= config.samples.count:
            break
        ids = next((token.ids for token in held_out.document(int(index)) if token.kind == "text"), ())
        if len(ids):
            found.setdefault(text.decode(ids))
    return list(found)


def _draw(model, captions: list[str], samples: SampleConfig, objective: str) -> bytes:
    from stages.report import grid

    images = model.text_to_image(captions, num_steps=samples.num_steps, guidance_scale=samples.guidance_scale, seeds=0,
                                 objective=objective)
    return grid(list(images), 8, captions)


def _drawn_shape(facts: dict, patch_size: int) -> tuple[int, int]:
    """(height, width) of what is drawn where nothing else is asked for: a square if the tokens have any, else the first
    of their ratios; tokens from before there were ratios are of squares."""
    from stages.aspects import Aspects, ratio

    aspects = Aspects(tuple(facts.get("aspects", Aspects.names)), patch_size)
    square = next((bucket for bucket, name in enumerate(aspects.names) if ratio(name) == 1), 0)
    return aspects.shape(square, facts["image_size"])


def _bundle(model, job: Job, text, facts: dict, held_out):
    """The model with both tokenizers, as sampling uses it; a language model with its own."""
    from models.bundle import BundleConfig, OmniLoom
    from stages.train_tokenizer import load_tokenizer

    if not job.config.trained:
        config = BundleConfig(model.config, job.config.diffusion, None, (), (), None, objectives=())
        return OmniLoom(config, model, None, text)
    visual = load_tokenizer(job.tokenizer).to(next(model.parameters()).device)
    size = _drawn_shape(facts, visual.config.patch_size)
    config = BundleConfig(
        unified=model.config, diffusion=job.config.diffusion, tokenizer=visual.config,
        latent_mean=tuple(facts["latent_mean"]), latent_std=tuple(facts["latent_std"]), image_size=size,
        num_frames=facts["frames"], snap_latents=visual.codebook_size is not None, objectives=job.config.trained,
        pixel_diffusion=job.config.pixel_diffusion, pixel_patch=facts.get("pixel_patch"))
    return OmniLoom(config, model, visual, text)


def _save(bundle, job: Job, last: dict, history, captions: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        bundle.save(folder)
        storage.copy_tree(folder, storage.join(job.output, "model"))
    history.save(storage.join(job.output, "report", "history.jsonl"))
    storage.write_json(storage.join(job.output, "report", "prompts.json"), {"captions": captions})
    validation = storage.read_json(storage.join(job.state, "validation.json")) or {}
    metrics = {"steps": job.config.steps, **validation, **last,
               "parameters": sum(p.numel() for p in bundle.model.parameters())}
    storage.write_json(storage.join(job.state, "metrics.json"), finite(metrics))
