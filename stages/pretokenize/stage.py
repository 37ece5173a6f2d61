"""Stage `pretokenize`: the corpus into text ids, visual codes and latents, and raw pixels and a frozen encoder's
features where they are asked for, once, for every later epoch.

In: records and the last visual tokenizer; without one, texts alone are taken, and what holds pictures is
counted as `documents_left_out`. Out: see `stages.data.tokens`. A pool of Ray Data actors holds the visual tokenizer;
each takes a few shards of records at a time and writes the token shards of each, so that a killed run goes on with the
shards that are missing and no decoded pixel crosses a process. A picture is brought to the ratio of `aspects` that is
nearest to its own, so that its grid has the shape of the picture. Features are those of the picture scaled to the
nearest multiples of the encoder's patch; of a video, the mean over the frames of a latent frame.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

from omniloom.infra import storage, worker_log
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError, within
from omniloom.models.tokenizer.build import AnyTokenizerConfig, config_from_dict, patch_size_of
from omniloom.models.tokenizer.config import IMAGES_ALONE, TiTokConfig, TokenizerConfig
from omniloom.models.tokenizer.quantizers.config import GaussianConfig
from omniloom.stages.base import RETRIES, Needs, StageContext
from omniloom.stages.checkpoints.outside import require_folder_of_weights
from omniloom.stages.checkpoints.text_tokenizer import read_text_tokenizer
from omniloom.stages.checkpoints.vision_encoder import encoder_config
from omniloom.stages.data import records, token_shards
from omniloom.stages.data.aspects import Aspects
from omniloom.stages.pretokenize import taken
from omniloom.stages.pretokenize.config import FEATURES, Config
from omniloom.stages.pretokenize.stats import combine
from omniloom.stages.tokenizer.config import is_warm_up

if TYPE_CHECKING:
    from omniloom.models.text import TextTokenizer
    from omniloom.stages.pretokenize.bits import Lossless

_LEARNT_BYTES = 256 << 20  # of text that a tokenizer is trained on
VERSION = 6
BUILDS_ON = ("text_tokenizer", "vocab_size")
_SHARDS_TOGETHER = 8
_ROUNDS = 4  # parts of an actor, where there are shards enough


def needs(config: Config) -> Needs:
    return Needs(worker_cpus=config.cpus, worker_gpus=config.gpus, workers=1)  # one actor at least


def check(config: Config, upstream: Mapping[str, Any], files: bool = True) -> None:
    """Check that the tokenizer can encode the sizes that pictures are scaled to, and that named files exist."""
    tokenizer = upstream.get("tokenizer")
    kinds = {"image" if kind == "document" else kind for kind in getattr(upstream.get("records"), "kinds", ())}
    if tokenizer and tokenizer.model:
        check_fit(config, tokenizer.model, kinds)
    if files and config.text_tokenizer:
        _named_text_tokenizer(config.text_tokenizer)
    if files and config.features and "tokenizer" in upstream:
        encoder_config(config.features, FEATURES)
        require_folder_of_weights(config.features, FEATURES)


def check_counts(config: Config, upstream: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
    tokenizer = upstream.get("tokenizer")
    if tokenizer and tokenizer.model:
        check_fit(config, tokenizer.model, pictures_in(counts))


def run(context: StageContext) -> dict:
    from omniloom.models.text import TextTokenizer
    from omniloom.stages.pretokenize.bits import lossless
    from omniloom.stages.pretokenize.index import write_indices

    config: Config = context.config
    corpus, visual = context.records, context.tokenizer
    model = config_from_dict(storage.load_json(visual.file("tokenizer", "config.json"))) if visual else None
    if model:
        check_fit(config, model, pictures_in(corpus.metrics))
    feature_dim = encoder_config(config.features, FEATURES).width if model and config.features else None
    text_uri = storage.join(context.state, "text.json")
    if not storage.exists(text_uri):
        storage.write_bytes(text_uri, _text_tokenizer(config, corpus).encode())
    text = TextTokenizer.load(storage.read_bytes(text_uri).decode())
    shards, notes = taken.numbered(corpus, context.predecessor), storage.join(context.output, taken.NOTES)
    taken.take_over(shards, context.predecessor, text.digest, context.output, context.state)
    with ThreadPoolExecutor(1, thread_name_prefix="card") as beside:  # as long as actors tokenize
        seen = None
        if model and "image" in pictures_in(corpus.metrics):
            seen = beside.submit(lossless, corpus, config, patch_size_of(model))
        _tokenize(context, shards, text_uri, notes)
    write_indices(context.output, notes)
    stats = [storage.load_json(storage.join(notes, "shards", f"{shard.number:05d}.json")) for shard in shards]
    facts = combine(stats)
    with_images = [shard.number for shard, found in zip(shards, stats, strict=True) if "image" in found["pictures"]]
    bits = _card(context, stats, facts, model, seen.result() if seen else None, with_images)
    storage.write_json(
        storage.join(context.output, "tokens.json"),
        {
            "schema_version": token_shards.SCHEMA_VERSION,
            "visual_tokenizer": visual and visual.fingerprint,
            "visual_digest": visual and visual.digest,
            "text_digest": text.digest,
            "vocab_size": text.vocab_size,
            "specials": text.specials,
            "image_size": config.image_size,
            "video_size": config.video_size,
            "frames": config.frames,
            "aspects": list(config.aspects),
            "codebook_size": model and model.codebook_size,
            "pixel_patch": config.pixel_patch if model else None,
            "feature_dim": feature_dim,
            "latent_mean": facts.pop("latent_mean"),
            "latent_std": facts.pop("latent_std"),
            "counts": facts,
        },
    )
    storage.write_bytes(storage.join(context.output, "text.json"), text.to_json().encode())
    numbers = {name: value for name, value in facts.items() if isinstance(value, int | float)}
    return numbers | bits | taken.drift(shards, stats, context.predecessor)


def _card(
    context: StageContext,
    stats: list[dict],
    facts: dict,
    model: AnyTokenizerConfig | None,
    seen: Lossless | None,
    with_images: Collection[int],
) -> dict:
    """Writes the card into the artifact and the stage's MLflow run, shows its bits, and gives them as metrics."""
    from omniloom.stages.pretokenize import card
    from omniloom.stages.pretokenize.bits import conditional

    config: Config = context.config
    codes = model.codebook_size if model else None
    numbers = len(facts["latent_mean"]) * (2 if config.log_variances else 1)
    stored = numbers * (16 if config.latents == "bf16" else 32)
    known = conditional(context.output, codes, with_images) if codes else None
    made = card.make(stats, facts, codes, stored, seen, known)
    storage.write_json(storage.join(context.output, "card.json"), made)
    storage.write_bytes(storage.join(context.output, "card.md"), card.text(made).encode())
    context.tracker.log_text(card.text(made), "card.md")
    if made["bits"]:
        context.progress.note("\n" + card.bits_table(made))
    return card.metrics(made)


def _tokenize(context: StageContext, shards: list[taken.Shard], text_uri: str, notes: str) -> None:
    """Make the token shards that are missing, in a pool of actors, which note down what is of each in `notes`."""
    import ray

    config: Config = context.config
    done = storage.list_files(storage.join(notes, "shards"))
    todo = [{"index": s.number, "uri": s.uri} for s in shards if f"{s.number:05d}.json" not in done]
    context.progress(len(shards) - len(todo), len(shards), "shards")
    if todo:
        actors = min(config.workers or _room(config), len(todo))
        parts = _parts(todo, actors)
        stream = ray.data.from_items(parts, override_num_blocks=len(parts)).map(
            cast(Any, _Actor),
            fn_constructor_kwargs={
                "config": config,
                "visual": context.tokenizer,
                "text_uri": text_uri,
                "output": context.output,
                "state": notes,
                "logs": worker_log.folder(),
            },
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=config.cpus,
            num_gpus=config.gpus or None,
            max_restarts=-1,
            max_task_retries=RETRIES,
        )
        made = len(shards) - len(todo)
        for part in stream.iter_rows():
            made += part["done"]
            context.progress(made, len(shards), "shards")


def _room(config: Config) -> int:
    """How many actors the cluster has room for; one at least."""
    import ray

    found = ray.cluster_resources()
    fits = [found.get("CPU", 0) // config.cpus] + ([found.get("GPU", 0) // config.gpus] if config.gpus else [])
    return max(1, int(min(fits)))


def _parts(todo: list[dict], actors: int) -> list[dict]:
    """What an actor is given at a time: several shards, so that batches are full from one to the next, but so few that
    none waits long for the others at the end, or does much again where it was killed."""
    size = min(_SHARDS_TOGETHER, max(1, len(todo) // (_ROUNDS * actors)))
    return [{"shards": todo[at : at + size]} for at in range(0, len(todo), size)]


class _Actor:
    """A `ShardTokenizer` in a process of the pool. The stage's body, which waits for them, so loads no torch."""

    def __init__(self, logs: str | None, **arguments: Any):
        from omniloom.stages.pretokenize.shard import ShardTokenizer

        self._logs = logs
        self._tokenizer = ShardTokenizer(**arguments)

    def __call__(self, part: dict) -> dict:
        with worker_log.kept(self._logs, worker_log.name_of_process()):
            worker_log.write("shards " + ", ".join(str(shard["index"]) for shard in part["shards"]))
            return self._tokenizer.tokenize(list(part["shards"]))


def pictures_in(counts: Mapping[str, Any]) -> set[str]:
    """Which of image and video the records that these counts are of hold; documents hold images."""
    held = {kind for kind in ("image", "video", "document") if counts.get(f"records_{kind}")}
    return {"image" if kind == "document" else kind for kind in held}


def check_fit(config: Config, model: AnyTokenizerConfig, kinds: Collection[str]) -> None:
    """InputError where the tokenizer cannot encode what pictures of these kinds, image and video, are brought to."""
    if is_warm_up(model):
        raise InputError(
            "the tokenizer is a TiTok's warm-up, which has no pixels yet; configure a tokenizer stage behind it, which "
            "trains its decoder on them (docs/pipelines.md)"
        )
    aspects = Aspects(config.aspects, patch_size_of(model))
    sizes = {f"{kind}_size": getattr(config, f"{kind}_size") for kind in ("image", "video") if kind in kinds}
    with within():
        for field, size in sizes.items():
            aspects.check([size], field, "aspects")
            for bucket, name in enumerate(config.aspects):
                shape = aspects.shape(bucket, size)
                if config.pixel_patch and any(side % config.pixel_patch for side in shape):
                    raise ValueError(
                        f"pixel_patch: {config.pixel_patch} does not divide the {shape[0]}x{shape[1]} "
                        f"pixels of {field} {size} at aspect {name}"
                    )
        if "video" in kinds and (alone := IMAGES_ALONE.get(model.architecture)):
            raise ValueError(f"the corpus holds videos, and the tokenizer is {alone}, which is for images alone")
        if config.log_variances and not isinstance(getattr(model, "quantizer", None), GaussianConfig):
            raise ValueError(
                "log_variances: the tokenizer's latents have none, expected one whose quantizer is of kind kl"
            )
        if config.features and isinstance(model, TiTokConfig):
            raise ValueError("features: the latents of a TiTok stand for no place in the picture, expected null")
        if isinstance(model, TiTokConfig):
            for bucket, name in enumerate(config.aspects):
                if (shape := aspects.shape(bucket, config.image_size)) != model.size:
                    raise ValueError(
                        f"image_size: {config.image_size} at aspect {name} makes pictures of "
                        f"{shape[0]}x{shape[1]}, the tokenizer's are {model.size[0]}x{model.size[1]}"
                    )
        elif isinstance(model, TokenizerConfig) and "video" in kinds and (config.frames - 1) % model.temporal_patch:
            raise ValueError(
                f"frames: expected 1 + a multiple of temporal_patch {model.temporal_patch}, got {config.frames}"
            )


def _text_tokenizer(config: Config, corpus: Artifact) -> str:
    from omniloom.models.text import TextTokenizer

    if config.text_tokenizer:
        return _named_text_tokenizer(config.text_tokenizer).to_json()
    return TextTokenizer.train(_texts(corpus), config.vocab_size).to_json()


def _named_text_tokenizer(uri: str) -> TextTokenizer:
    try:
        return read_text_tokenizer(uri)
    except Exception as error:  # each filesystem has its own for unreachable, unknown, unauthorised
        raise InputError(f"is no tokenizer.json: {error}", field="text_tokenizer", file=uri) from None


def _texts(corpus: Artifact) -> Iterator[str]:
    """Captions and texts of the train split, in order: held-out text teaches the tokenizer nothing. Of a large corpus
    that share of the records, by their ids, which has about `_LEARNT_BYTES`.
    """
    share = _LEARNT_BYTES / max(1, records.text_bytes(corpus.uri))
    columns = ("id", "captions", "text", "segments.type", "segments.text")  # no picture of a document is read
    for row in records.iterate(corpus.uri, split="train", columns=columns):
        if int(row["id"][-8:], 16) >= share * 2**32:  # the other end than the one that splits go by
            continue
        yield from row["captions"] or ()
        if row["text"]:
            yield row["text"]
        for segment in row["segments"] or ():
            if segment["type"] == "text":
                yield segment["text"]
