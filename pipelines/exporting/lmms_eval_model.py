"""OmniLoom as a model of lmms-eval. Copied into an exported folder as it is: it imports lmms-eval and the repository
that `pretrained` names, and nothing of omniloom."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
from lmms_eval.api.model import lmms
from lmms_eval.api.registry import register_model


def _repository(folder):
    """The class in a repository's modeling_omniloom.py."""
    path = Path(folder).resolve() / "modeling_omniloom.py"
    spec = importlib.util.spec_from_file_location("modeling_omniloom", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules["modeling_omniloom"] = module
    spec.loader.exec_module(module)
    return module.OmniLoomForGeneration


@register_model("omniloom")
class OmniLoom(lmms):
    """`pretrained`: the exported repository's folder."""

    def __init__(self, pretrained, device="cpu", batch_size=1, **unused):
        super().__init__()
        if unused:
            raise ValueError(f"unknown model_args: {', '.join(unused)}")
        self._model = _repository(pretrained).from_pretrained(pretrained, device)
        self.batch_size = int(batch_size)

    def generate_until(self, requests):
        return [self._written(*request.args) for request in requests]

    def _written(self, context, wanted, doc_to_visual, doc_id, task, split):
        sampling = sys.modules["omniloom_model.unified.generation.sampling"]
        text = sampling.TextSampling(
            max_new_tokens=int(wanted.get("max_new_tokens", 64)), temperature=float(wanted.get("temperature") or 0)
        )
        images = self._images(doc_to_visual, doc_id, task, split)
        answer = self._model.text_to_text([_plain(context)], text, images=[images], seeds=[0])[0]
        until = wanted.get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            answer = answer.split(stop)[0] if stop else answer
        return answer.strip()

    def loglikelihood(self, requests):
        scored = []
        for request in requests:
            context, continuation, doc_to_visual, doc_id, task, split = request.args
            if callable(continuation):
                continuation = continuation(self.task_dict[task][split][doc_id])
            images = self._images(doc_to_visual, doc_id, task, split)
            scored.append(self._model.log_likelihood(_plain(context), continuation, images))
        return scored

    def generate_until_multi_round(self, requests):
        raise NotImplementedError("the model keeps no conversation; choose tasks of one round")

    def _images(self, doc_to_visual, doc_id, task, split):
        """Pillow's pictures as uint8 (H, W, 3); what is no picture is left out."""
        shown = doc_to_visual(self.task_dict[task][split][doc_id]) if doc_to_visual else []
        return [np.asarray(image.convert("RGB")) for image in shown or [] if hasattr(image, "convert")]


def _plain(context):
    """Pictures stand before the text: the places that a task marks for them are left out."""
    return context.replace("<image>", "").strip()
