"""Measures writing: texts, and captions of held-out pictures, shown in each objective's way. In: an
`Evaluation`, which gets the figures, pictures and samples. What each figure means stands in `stages.evaluate.measures`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import torch

from omniloom.models.model import to_pixels
from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling
from omniloom.models.unified.generation.score import log_likelihoods
from omniloom.models.unified.layouts import prefix_for_text
from omniloom.stages.data.media.images import encode_png
from omniloom.stages.data.spread import spread
from omniloom.stages.evaluate import metrics
from omniloom.stages.evaluate.cider import cider
from omniloom.stages.evaluate.evaluation import Evaluation
from omniloom.stages.evaluate.features import measuring
from omniloom.stages.evaluate.items import label_weights
from omniloom.stages.reporting import report

_CAPTION_TOKENS = 32
_BEGUN, _WRITTEN, _GONE_ON, _SHOWN = 16, 48, 16, 4  # tokens of a beginning and behind it; texts, and those shown
_NO_BYTES = 1e-9  # of an empty text, whose end is coded all the same


def read_text(evaluation: Evaluation) -> None:
    """The code length of held-out texts, <eos> included."""
    tokens, chosen = evaluation.tokens, texts_to_read(evaluation)
    sizes = np.array([tokens.row(index)["bytes"] for index in chosen], np.float64)
    if not sizes.sum():
        return
    bits = np.array([_bits(evaluation, tokens.document(index)[0].text_ids) for index in chosen])
    ids = [tokens.row(index)["id"] for index in chosen]
    sizes = np.maximum(sizes, _NO_BYTES)
    evaluation.add("bits_per_byte", ids, bits / sizes, sizes)
    if np.isfinite(bits).all():  # nothing can be drawn from likelihoods that are no numbers
        _go_on(evaluation, chosen[:_GONE_ON])


def texts_to_read(evaluation: Evaluation) -> list[int]:
    """Numbers of held-out texts, drawn evenly over sources and within each over files."""
    tokens, config = evaluation.tokens, evaluation.config
    return spread(tokens.table, ("source", "path"), config.seed, tokens.indices("text"))[: config.texts].tolist()


@torch.no_grad()
def _bits(evaluation: Evaluation, text: np.ndarray) -> float:
    """The code length of a text's ids. One that is longer than a row of training is read in pieces of that length, as
    it was there; the first token of a later piece is predicted from the one before."""
    loom, special, length = evaluation.loom, evaluation.loom.config.unified.specials, evaluation.packing.length
    ids = torch.as_tensor(np.concatenate([[special.bos], text, [special.eos]])).long().to(loom.device)
    bits = 0.0
    for start in range(0, len(ids) - 1, length):
        piece = ids[start : start + length + 1]
        logits = loom.model.text_logits(piece[None, :-1]).float()
        bits += float(torch.nn.functional.cross_entropy(logits[0], piece[1:], reduction="sum")) / math.log(2)
    return bits


def _go_on(evaluation: Evaluation, chosen: Sequence[int]) -> None:
    """Texts are begun; of what the model writes behind some is shown, and how often it says a thing again is counted,
    beside how often the held-out texts do."""
    loom = evaluation.loom
    whole = [evaluation.tokens.document(index)[0].text_ids.tolist() for index in chosen]
    prompts = [loom.text.decode(ids[:_BEGUN]) for ids in whole]
    freely = TextSampling(max_new_tokens=_WRITTEN, temperature=0.8, top_p=0.95)
    texts = loom.text_to_text(prompts, freely, seeds=evaluation.config.seed)
    ids = [evaluation.tokens.row(index)["id"] for index in chosen]
    evaluation.add("text_repeated", ids, [metrics.repeated(loom.text.encode(text)) for text in texts])
    real = [metrics.repeated(ids[_BEGUN : _BEGUN + _WRITTEN]) for ids in whole]
    evaluation.metrics["text_repeated_real"] = float(np.mean(real))
    for prompt, text in zip(prompts[:_SHOWN], texts, strict=False):
        # Blank lines would fill the page; samples.jsonl keeps them.
        shown = [re.sub(r"\s*\n\s*", "\n", value).strip() for value in (prompt, text)]
        evaluation.text_samples.append({"prompt": shown[0], "output": shown[1]})
        evaluation.samples.append({"task": "text_to_text", "prompt": prompt, "output": text})


def describe(evaluation: Evaluation) -> None:
    chosen = _described(evaluation)
    for objective in evaluation.objectives if chosen else ():
        _describe(evaluation, chosen, objective)


def _described(evaluation: Evaluation) -> list[int]:
    return evaluation.captioned[: evaluation.config.captions]


def _describe(evaluation: Evaluation, chosen: list[int], objective: str) -> None:
    suffix, clips = evaluation.suffix(objective), evaluation.images
    judged = evaluation.labelled[: evaluation.config.captions]
    described = list(dict.fromkeys([*chosen, *judged]))
    written: dict[int, str] = {}
    for shape, places in evaluation.by_shape(clips, described).items():
        texts = evaluation.loom.image_to_text(
            [clips[described[place]][0] for place in places],
            text=TextSampling(max_new_tokens=_CAPTION_TOKENS),
            visual=VisualSampling(objective=objective, size=shape),
        )
        written |= {described[place]: text for place, text in zip(places, texts, strict=True)}
    for i in described:
        evaluation.samples.append(
            {
                "task": "image_to_text",
                "objective": objective,
                "id": clips.record(i)["id"],
                "expected": evaluation.captions[i],
                "output": written[i],
            }
        )
    if judged:
        labels = [evaluation.label(i) for i in judged]
        right = [
            metrics.named_labels(written[i], evaluation.classes) == {label}
            for i, label in zip(judged, labels, strict=True)
        ]
        evaluation.add(f"caption_accuracy{suffix}", evaluation.ids(judged), right, label_weights(labels))
    exact = [written[i].strip() in map(str.strip, clips.table["captions"][i].as_py()) for i in chosen]
    evaluation.add(f"caption_exact{suffix}", evaluation.ids(chosen), exact)
    scores = cider([written[i] for i in chosen], [clips.table["captions"][i].as_py() for i in chosen])
    evaluation.add(f"caption_cider{suffix}", evaluation.ids(chosen), scores)
    of = f" ({objective})" if suffix else ""
    evaluation.cards.setdefault("described_images", []).extend(
        {"png": encode_png(clips[i][0]), "lines": [f"true: {evaluation.captions[i]}", f"written{of}: {written[i]}"]}
        for i in chosen[:16]
    )
    for source, part in evaluation.by_source(chosen).items():
        evaluation.pictures[f"described_images{source}{suffix}"] = report.grid(
            [clips[i][0] for i in part[:16]], 8, [written[i] for i in part[:16]]
        )


def retrieve(evaluation: Evaluation) -> None:
    """Held-out pictures against captions: each picture's own and others of the split, drawn by the seed, in the order
    of log p(caption <eos> | picture) - log p(caption <boi> | <bos>), or of the former alone where captions before
    pictures were not trained.

    The difference is the pointwise mutual information up to a constant: common captions are not ahead by being common.
    What ends the caption is what the model was trained to write there, behind a picture and before one. A tie counts
    half. Chance is the figure of a random order.
    """
    captions, chosen = list(dict.fromkeys(evaluation.caption(i) for i in evaluation.captioned)), _described(evaluation)
    if not chosen:
        return
    asked = _asked(evaluation, captions, chosen)
    count = asked.shape[1]
    if count < 2:
        return
    loom, special = evaluation.loom, evaluation.loom.config.unified.specials
    ids = [loom.text.encode(caption) for caption in captions]
    prior = np.zeros(len(captions))
    if evaluation.knows_captions:
        prior = log_likelihoods(loom.model, [prefix_for_text([], special)], [[[*text, special.boi] for text in ids]])[
            0
        ].numpy()
    evaluation.metrics |= {
        "retrieval_captions": count,
        "retrieval_recall_at_1_chance": 1 / count,
        "retrieval_recall_at_10_chance": min(10, count) / count,
        "retrieval_mean_rank_chance": (count + 1) / 2,
    }
    measuring.retrieved(evaluation, captions, chosen, asked)
    for objective in evaluation.objectives:
        likely = _likelihoods(evaluation, chosen, asked, ids, objective)
        ranks = np.array([metrics.rank(row - prior[held]) for row, held in zip(likely, asked, strict=True)])
        suffix = evaluation.suffix(objective)
        for k in (1, 10):
            found = np.where(np.isnan(ranks), np.nan, ranks <= k)  # without a rank there is no figure; it is no miss
            evaluation.add(f"retrieval_recall_at_{k}{suffix}", evaluation.ids(chosen), found)
        evaluation.add(f"retrieval_mean_rank{suffix}", evaluation.ids(chosen), ranks)


def _asked(evaluation: Evaluation, captions: list[str], chosen: list[int]) -> np.ndarray:
    """For each of the chosen pictures the numbers of its caption, first, and of others, none of which is its own too:
    int (pictures, captions)."""
    numbers = {caption: number for number, caption in enumerate(captions)}
    others = [
        np.setdiff1d(
            np.arange(len(captions)),
            [
                numbers[caption]
                for caption in {evaluation.captions[i], *evaluation.images.table["captions"][i].as_py()}
                if caption in numbers
            ],
        )
        for i in chosen
    ]
    count = min([evaluation.config.retrieval_captions - 1, *map(len, others)])
    rng = np.random.default_rng((evaluation.config.seed, 8))
    return np.array(
        [
            [numbers[evaluation.caption(i)], *rng.choice(wrong, max(count, 0), replace=False)]
            for i, wrong in zip(chosen, others, strict=True)
        ],
        np.int64,
    ).reshape(len(chosen), -1)


def _likelihoods(
    evaluation: Evaluation, chosen: list[int], asked: np.ndarray, ids: list[list[int]], objective: str
) -> list[np.ndarray]:
    """For each of the chosen pictures log p(caption <eos> | picture) of the captions that are asked, by their numbers;
    the pictures are shown in their shapes."""
    loom, special, clips = evaluation.loom, evaluation.loom.config.unified.specials, evaluation.images
    found: dict[int, np.ndarray] = {}
    for shape, places in evaluation.by_shape(clips, chosen).items():
        for at in range(0, len(places), loom.batch_size):
            part = places[at : at + loom.batch_size]
            shown = loom.encode(to_pixels([clips[chosen[place]][0] for place in part], shape), objective)
            prefixes = [
                prefix_for_text([], special, values.reshape(-1, *values.shape[3:]), shown.shape[1:4], objective)
                for values in shown
            ]
            texts = [[[*ids[number], special.eos] for number in asked[place]] for place in part]
            found |= {
                place: row.numpy()
                for place, row in zip(part, log_likelihoods(loom.model, prefixes, texts), strict=True)
            }
    return [found[place] for place in range(len(chosen))]
