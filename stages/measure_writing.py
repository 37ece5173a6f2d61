"""What `evaluate` measures of writing: texts, and captions of held-out pictures, shown in each objective's way. In: an
`Evaluation`, which gets the figures, pictures and samples.

bits_per_byte           the model's own code length of held-out texts over their UTF-8 bytes, <eos> included
caption_accuracy        share of the captions that name the picture's label and no other
caption_exact           share of them that are the picture's own, letter by letter
retrieval_*             where a picture's own caption comes among `retrieval_captions` distinct ones of the split
"""
from __future__ import annotations

import math
import re

import numpy as np
import torch

from models.bundle import to_pixels
from models.unified.layouts import prefix_for_text
from models.unified.score import log_likelihoods
from stages import metrics, report
from stages.evaluation import Evaluation

_LENGTH = 1024  # tokens of a text that are read at once


def read_text(evaluation: Evaluation) -> None:
    bits, size = 0.0, 0
    loom, tokens, special = evaluation.loom, evaluation.tokens, evaluation.loom.config.unified.specials
    chosen = tokens.indices("text")[:evaluation.config.texts]
    for index in chosen:
        ids = np.concatenate([[special.bos], tokens.document(int(index))[0].ids, [special.eos]])
        # A longer text is read in pieces; the first token of a later piece is predicted from the one before.
        for start in range(0, len(ids) - 1, _LENGTH):
            piece = torch.as_tensor(ids[start:start + _LENGTH + 1])[None].long().to(loom.device)
            with torch.no_grad():
                logits = loom.model.text_logits(piece[:, :-1]).float()
            loss = torch.nn.functional.cross_entropy(logits[0], piece[0, 1:], reduction="sum")
            bits += float(loss) / math.log(2)
        size += tokens.row(int(index))["bytes"]
    if not size:
        return
    evaluation.metrics["bits_per_byte"] = bits / size
    prompts = [loom.text.decode(tokens.document(int(i))[0].ids[:16]) for i in chosen[:4]]
    texts = loom.text_to_text(prompts, max_new_tokens=48, temperature=0.8, top_p=0.95, seeds=evaluation.config.seed)
    for prompt, text in zip(prompts, texts, strict=True):
        # Blank lines would fill the page; samples.jsonl keeps them.
        shown = [re.sub(r"\s*\n\s*", "\n", value).strip() for value in (prompt, text)]
        evaluation.text_samples.append({"prompt": shown[0], "output": shown[1]})
        evaluation.samples.append({"task": "text_to_text", "prompt": prompt, "output": text})


def describe(evaluation: Evaluation) -> None:
    chosen = _described(evaluation)
    for objective in evaluation.objectives if chosen else ():
        _describe(evaluation, chosen, objective)


def _described(evaluation: Evaluation) -> list[int]:
    return evaluation.captioned[:evaluation.config.captions]


def _describe(evaluation: Evaluation, chosen: list[int], objective: str) -> None:
    suffix, images = evaluation.suffix(objective), {i: evaluation.images[i][0] for i in chosen}
    texts = dict(zip(chosen, evaluation.loom.image_to_text(list(images.values()), objective=objective), strict=True))
    right, exact, judged = 0, 0, 0
    for i, text in texts.items():
        record = evaluation.records[i]
        exact += text.strip() == record["caption"].strip()
        if record["label"] in evaluation.classes:
            judged += 1
            right += metrics.named_labels(text, evaluation.classes) == {record["label"]}
        evaluation.samples.append({"task": "image_to_text", "objective": objective, "id": record["id"],
                                   "expected": record["caption"], "output": text})
    if judged:
        evaluation.metrics[f"caption_accuracy{suffix}"] = right / judged
    evaluation.metrics[f"caption_exact{suffix}"] = exact / len(chosen)
    for source, part in evaluation.by_source(chosen).items():
        evaluation.pictures[f"described_images{source}{suffix}"] = report.grid(
            [images[i] for i in part[:16]], 8, [texts[i] for i in part[:16]])


def retrieve(evaluation: Evaluation) -> None:
    """Held-out pictures against captions: each picture's own and others of the split, drawn by the seed, in the order
    of log p(caption <eos> | picture) - log p(caption <boi> | <bos>).

    The difference is the pointwise mutual information up to a constant: common captions are not ahead by being common.
    What ends the caption is what the model was trained to write there, behind a picture and before one. A tie counts
    half. Chance is the figure of a random order.
    """
    captions = list(dict.fromkeys(evaluation.records[i]["caption"] for i in evaluation.captioned))
    count, chosen = min(evaluation.config.retrieval_captions, len(captions)), _described(evaluation)
    if count < 2 or not chosen:
        return
    loom, special = evaluation.loom, evaluation.loom.config.unified.specials
    numbers = {caption: number for number, caption in enumerate(captions)}
    own = np.array([numbers[evaluation.records[i]["caption"]] for i in chosen])
    rng = np.random.default_rng((evaluation.config.seed, 8))
    others = [rng.choice(len(captions) - 1, count - 1, replace=False) for _ in chosen]
    asked = np.array([[right, *(wrong + (wrong >= right))] for right, wrong in zip(own, others, strict=True)])
    ids = [loom.text.encode(caption) for caption in captions]
    prior = log_likelihoods(loom.model, [prefix_for_text([], special)], [[[*text, special.boi] for text in ids]])[0]
    evaluation.metrics |= {"retrieval_captions": count, "retrieval_recall_at_1_chance": 1 / count,
                           "retrieval_recall_at_10_chance": min(10, count) / count,
                           "retrieval_mean_rank_chance": (count + 1) / 2}
    images = [evaluation.images[i][0] for i in chosen]
    for objective in evaluation.objectives:
        ranks = []
        for at in range(0, len(chosen), loom.batch_size):
            part = slice(at, at + loom.batch_size)
            shown = loom.encode(to_pixels(images[part], loom.config.image_size), objective)
            prefixes = [prefix_for_text([], special, values.reshape(-1, *values.shape[3:]), shown.shape[1:4], objective)
                        for values in shown]
            texts = [[[*ids[number], special.eos] for number in row] for row in asked[part]]
            for row, likely in zip(asked[part], log_likelihoods(loom.model, prefixes, texts), strict=True):
                ranks.append(metrics.rank((likely - prior[row]).numpy()))
        suffix = evaluation.suffix(objective)
        evaluation.metrics |= {f"retrieval_recall_at_{k}{suffix}": float(np.mean(np.array(ranks) <= k))
                               for k in (1, 10)}
        evaluation.metrics[f"retrieval_mean_rank{suffix}"] = float(np.mean(ranks))
