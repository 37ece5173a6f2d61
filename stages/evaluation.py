"""The measurements behind `evaluate`: each method adds metrics, pictures and samples for the report."""
from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
import torch

from infra import storage
from infra.artifacts import Artifact
from models.bundle import OmniLoom, to_uint8
from models.unified.representations import OBJECTIVES
from stages import history, metrics, quantizer_study, report
from stages.aspects import Aspects
from stages.base import last_tokenizer
from stages.clips import ClipStore
from stages.tokens import TokenSet


class Evaluation:
    """Held-out figures of one trained model. `metrics`, `pictures` (PNG) and `samples` fill as methods are called."""

    def __init__(self, config, inputs: dict[str, Artifact], device: str):
        self.config, self.inputs = config, inputs
        train = inputs["train"]
        self.loom = OmniLoom.load(train.local() / "model", device)
        self.tokens = TokenSet(inputs["pretokenize"], config.split)
        self.facts = self.tokens.facts
        self.metrics: dict[str, float] = {}
        self.pictures: dict[str, bytes] = {}
        self.samples: list[dict] = []
        self.text_samples: list[dict] = []
        self.images = self._clips("image", config.split)
        self.videos = self._clips("video", config.split)

    def _clips(self, kind: str, split: str, aspects: Aspects = Aspects()) -> ClipStore:
        size = self.facts["image_size"] if kind == "image" else self.facts["video_size"]
        return ClipStore(self.inputs["ingest"], kind, split, aspects, size, self.facts["frames"], 1 << 28)

    def reconstruct(self) -> None:
        """PSNR and SSIM of the tokenizer on held-out images and videos, each in the shape that it is tokenized in."""
        # Tokens from before there were ratios are of squares.
        aspects = Aspects(tuple(self.facts.get("aspects", Aspects.names)), self.loom.tokenizer.config.patch_size)
        for kind, num_shown in (("image", 16), ("video", 3)):
            clips = self._clips(kind, self.config.split, aspects)
            parts: list[tuple[int, dict[str, float]]] = []
            shown: dict[int, tuple[np.ndarray, np.ndarray]] = {}
            for members in clips.buckets(self.config.reconstructions):
                for chosen in np.split(members, range(32, len(members), 32)):
                    if not len(chosen):
                        continue
                    batch = np.stack([clips[int(i)] for i in chosen])
                    pixels = torch.from_numpy(batch).permute(0, 4, 1, 2, 3).float() / 255 - 0.5
                    with torch.no_grad():
                        recon, _ = self.loom.tokenizer(pixels.to(self.loom.device))
                    recons = to_uint8(recon)
                    frames = [x.reshape(-1, *x.shape[2:]) for x in (batch, recons)]
                    parts.append((len(frames[0]), metrics.reconstruction(*frames)))
                    shown |= {int(i): pair for i, pair in zip(chosen, zip(batch, recons, strict=True), strict=True)
                              if i < num_shown}
            if not parts:
                continue
            total = sum(count for count, _ in parts)
            self.metrics |= {f"recon_{name}_{kind}": sum(count * figures[name] for count, figures in parts) / total
                             for name in parts[0][1]}
            a, b = zip(*(shown[i] for i in sorted(shown)), strict=True)
            if kind == "image":
                self.pictures["reconstructed_images"] = report.pairs([x[0] for x in a], [x[0] for x in b], 8)
            else:
                self.pictures["reconstructed_videos"] = report.pairs(
                    [report.filmstrip(clip) for clip in a], [report.filmstrip(clip) for clip in b], 1)

    def codebook(self) -> None:
        """Share of the codebook that the corpus uses, and its perplexity as a share, over all splits."""
        size = self.loom.tokenizer.codebook_size
        if size is None:
            return
        counts = np.zeros(size, dtype=np.int64)
        for split in ("train", "validation", "test"):
            for document in TokenSet(self.inputs["pretokenize"], split):
                for token in document:
                    if token.codes is not None:
                        counts += np.bincount(token.codes, minlength=size)
        shares = counts[counts > 0] / max(1, counts.sum())
        self.metrics["codebook_usage"] = float((counts > 0).mean())
        self.metrics["codebook_perplexity"] = float(np.exp(-(shares * np.log(shares)).sum()))

    def read_text(self) -> None:
        """Bits per byte on held-out texts: the model's own code length over their UTF-8 bytes, <eos> included."""
        bits, size = 0.0, 0
        special = self.loom.config.unified.specials
        chosen = self.tokens.indices("text")[:self.config.texts]
        length = 1024
        for index in chosen:
            ids = np.concatenate([[special.bos], self.tokens.document(int(index))[0].ids, [special.eos]])
            # A longer text is read in pieces; the first token of a later piece is predicted from the one before.
            for start in range(0, len(ids) - 1, length):
                piece = torch.as_tensor(ids[start:start + length + 1])[None].long().to(self.loom.device)
                with torch.no_grad():
                    logits = self.loom.model.text_logits(piece[:, :-1]).float()
                loss = torch.nn.functional.cross_entropy(logits[0], piece[0, 1:], reduction="sum")
                bits += float(loss) / math.log(2)
            size += self.tokens.row(int(index))["bytes"]
        if not size:
            return
        self.metrics["bits_per_byte"] = bits / size
        prompts = [self.loom.text.decode(self.tokens.document(int(i))[0].ids[:16]) for i in chosen[:4]]
        texts = self.loom.text_to_text(prompts, max_new_tokens=48, temperature=0.8, top_p=0.95, seeds=self.config.seed)
        for prompt, text in zip(prompts, texts, strict=True):
            # Blank lines would fill the page; samples.jsonl keeps them.
            shown = [re.sub(r"\s*\n\s*", "\n", value).strip() for value in (prompt, text)]
            self.text_samples.append({"prompt": shown[0], "output": shown[1]})
            self.samples.append({"task": "text_to_text", "prompt": prompt, "output": text})

    def _classes(self) -> list[str]:
        """Labels that both splits have, with enough train pictures to learn them from."""
        train = Counter(label for label in self._labels("train") if label)
        held_out = {self.images.record(i)["label"] for i in range(len(self.images))}
        return sorted(label for label, n in train.items() if n >= self.config.class_examples and label in held_out)

    def _labels(self, split: str) -> list[str | None]:
        return self._clips("image", split).table["label"].to_pylist()

    def _suffix(self, objective: str) -> str:
        """What the names of an objective's figures and pictures end in: nothing where it is the only one."""
        return f"_{objective}" if len(self.loom.config.objectives) > 1 else ""

    def draw(self) -> None:
        """Pictures from held-out captions, by each objective: what a classifier of real pictures calls them, and how
        they spread."""
        records = [self.images.record(i) for i in range(len(self.images))]
        asked = [i for i, record in enumerate(records) if record["caption"]]
        if not asked or not self.config.drawings:
            return
        for objective in self.loom.config.objectives:
            self._draw_grid([records[i]["caption"] for i in asked], objective)
        classes = self._classes()
        labelled = [i for i in asked if records[i]["label"] in classes]
        if not classes or not labelled:
            return
        chosen = [labelled[i % len(labelled)] for i in range(self.config.drawings)]
        wanted = [records[i]["label"] for i in chosen]
        side = self.config.class_pixels
        train = self._clips("image", "train")
        rows = [i for i, label in enumerate(train.table["label"].to_pylist()) if label in classes]
        classifier = metrics.PixelClassifier(metrics.shrink([train[i][0] for i in rows], side),
                                             [train.record(i)["label"] for i in rows])
        real = metrics.shrink([self.images[i][0] for i in labelled], side)
        self.metrics["classes"] = len(classes)
        truth = [records[i]["label"] for i in labelled]
        self.metrics["classifier_accuracy"] = float(
            np.mean([a == b for a, b in zip(classifier(real), truth, strict=True)]))
        for objective in self.loom.config.objectives:
            suffix = self._suffix(objective)
            features = metrics.shrink(list(self._drawn([records[i]["caption"] for i in chosen], objective)), side)
            named = classifier(features)
            self.metrics[f"image_class_agreement{suffix}"] = float(
                np.mean([a == b for a, b in zip(named, wanted, strict=True)]))
            if len(labelled) > 5:
                # As many drawn as real: more would cover more by number alone.
                count = min(len(labelled), len(features))
                self.metrics[f"image_coverage{suffix}"] = metrics.coverage(real, features[:count])
            for i, (record, label) in enumerate(zip((records[i] for i in chosen), named, strict=True)):
                self.samples.append({"task": "text_to_image", "objective": objective, "prompt": record["caption"],
                                     "label": record["label"], "named": label, "seed": self.config.seed + i})

    def _drawn(self, captions: list[str], objective: str) -> np.ndarray:
        return self.loom.text_to_image(captions, num_steps=self.config.num_steps, objective=objective,
                                       guidance_scale=self.config.guidance_scale, seeds=self.config.seed)

    def _draw_grid(self, captions: list[str], objective: str) -> None:
        shown = list(dict.fromkeys(captions))[:32]
        shown = (shown * (32 // len(shown) + 1))[:32]
        name = f"drawn_images{self._suffix(objective)}"
        self.pictures[name] = report.grid(list(self._drawn(shown, objective)), 8, shown)

    def describe(self) -> None:
        """Captions of held-out pictures, shown in each objective's way: right where they name the picture's label and
        no other."""
        classes = self._classes()
        count = min(self.config.captions, len(self.images))
        chosen = [i for i in range(len(self.images)) if self.images.record(i)["caption"]][:count]
        if not chosen:
            return
        for objective in self.loom.config.objectives:
            self._describe(chosen, classes, objective)

    def _describe(self, chosen: list[int], classes: list[str], objective: str) -> None:
        suffix = self._suffix(objective)
        texts = self.loom.image_to_text([self.images[i][0] for i in chosen], objective=objective)
        right, exact, judged = 0, 0, 0
        for i, text in zip(chosen, texts, strict=True):
            record = self.images.record(i)
            exact += text.strip() == record["caption"].strip()
            if record["label"] in classes:
                judged += 1
                right += metrics.named_labels(text, classes) == {record["label"]}
            self.samples.append({"task": "image_to_text", "objective": objective, "id": record["id"],
                                 "expected": record["caption"], "output": text})
        if judged:
            self.metrics[f"caption_accuracy{suffix}"] = right / judged
        self.metrics[f"caption_exact{suffix}"] = exact / len(chosen)
        shown = [self.images[i][0] for i in chosen[:16]]
        self.pictures[f"described_images{suffix}"] = report.grid(shown, 8, texts[:16])

    def show_videos(self) -> None:
        """Videos from held-out captions, as strips of frames, by each objective."""
        captions = [c for i in range(len(self.videos)) if (c := self.videos.record(i)["caption"])]
        captions = list(dict.fromkeys(captions))[:6]
        if not captions:
            return
        size = self.facts["video_size"]
        for objective in self.loom.config.objectives:
            videos = self.loom.text_to_video(captions, size=(size, size), num_steps=self.config.num_steps,
                                             guidance_scale=self.config.guidance_scale, seeds=self.config.seed,
                                             objective=objective)
            self.pictures[f"drawn_videos{self._suffix(objective)}"] = report.grid(
                [report.filmstrip(v) for v in videos], 1, captions)

    def _by_objective(self) -> dict:
        """The figures of what was trained on pictures, one objective a row."""
        names = [name for name in ("image_class_agreement", "caption_accuracy", "image_coverage", "caption_exact")
                 if any(f"{name}{self._suffix(o)}" in self.metrics for o in self.loom.config.objectives)]
        rows = [[objective, *(self.metrics.get(f"{name}{self._suffix(objective)}") for name in names)]
                for objective in self.loom.config.objectives]
        return {"columns": ["objective", *names], "rows": rows}

    def report(self, failed: dict) -> dict:
        """What `stages.report.render` takes."""
        headline = (*(f"{name}{self._suffix(first)}" for first in self.loom.config.objectives[:1] for name in
                      ("image_class_agreement", "caption_accuracy", "image_coverage")),
                    "bits_per_byte", "recon_psnr_image", "recon_psnr_video", "codebook_usage")
        sections = [{"title": "Metrics", "text": f"Measured on the {self.config.split} split.",
                     "metrics": self.metrics}]
        suffixes = [self._suffix(objective) for objective in self.loom.config.objectives]
        if len(suffixes) > 1:
            sections.append({"title": "Objectives", "tables": [self._by_objective()]})
        for title, names in (("Drawn from captions", [f"drawn_{kind}{suffix}" for kind in ("images", "videos")
                                                      for suffix in suffixes]),
                             ("Described", [f"described_images{suffix}" for suffix in suffixes]),
                             ("Reconstructed: original above, reconstruction below",
                              ("reconstructed_images", "reconstructed_videos"))):
            pictures = [{"png": self.pictures[name], "caption": name.replace("_", " ")} for name in names
                        if name in self.pictures]
            if pictures:
                sections.append({"title": title, "images": pictures})
        if self.text_samples:
            sections.append({"title": "Text", "samples": self.text_samples})
        if study := self.inputs.get("quantizer_study"):
            sections.append({"title": "Quantizers", "tables": [
                quantizer_study.table(storage.read_json(study.file("study.json")))]})
        for artifact in filter(None, (last_tokenizer(self.inputs), self.inputs["train"])):
            sections.append({"title": f"Curves of {artifact.stage}", "curves": self._curves(artifact)})
        if failed:
            sections[0]["text"] += " The gate was not passed: " + ", ".join(
                f"{name} {value} < {least}" for name, (value, least) in failed.items()) + "."
        train = self.inputs["train"].manifest
        return {"title": f"OmniLoom: {train['pipeline']}",
                "facts": {**{name: artifact.fingerprint[:12] for name, artifact in self.inputs.items()},
                          "parameters": train["metrics"]["parameters"],
                          "trained for": f"{train['times']['seconds']:.0f} s", "code": train["code"] or "unknown"},
                "headline": {name: self.metrics[name] for name in headline if name in self.metrics},
                "sections": sections}

    @staticmethod
    def _curves(artifact: Artifact) -> list[dict]:
        found = history.series(history.load(artifact.file("report", "history.jsonl")))
        losses = ("text_loss", "visual_loss", *(f"{name}_loss" for name in OBJECTIVES))
        groups = {"loss": ("loss", *losses, *(f"validation_{name}" for name in losses), "image_loss", "video_loss"),
                  "psnr": ("image_psnr", "video_psnr", "validation_psnr_image", "validation_psnr_video"),
                  "gradient norm": ("grad_norm",), "learning rate": ("lr",)}
        curves = []
        for title, names in groups.items():
            chosen = {name: found[name] for name in names if name in found}
            if chosen:
                curves.append({"title": title, "series": chosen, "log": title == "loss"})
        return curves
