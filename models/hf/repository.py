"""A model as a Hugging Face repository. In: a model. Out: a folder that a process with torch and safetensors alone
reads, and back.

    config.json             `model_type` and what it is; under `omniloom` the contents of a model folder's config.json
    model.safetensors       both networks, their names after `unified.` and `visual_tokenizer.`
    tokenizer.json          the text tokenizer, with tokenizer_config.json, which names its special tokens
    modeling_omniloom.py    `OmniLoomForGeneration`, which it loads from the folder beside it:
    omniloom_model/         these modules, `omniloom.models`, copied with their imports renamed
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omniloom.models.folder import Parts, assemble, document_of, stored_state
from omniloom.models.model import OmniLoom
from omniloom.models.text import TextTokenizer
from omniloom.models.unified.generation.cache import GenerationState

PACKAGE = "omniloom_model"
_UNIFIED, _VISUAL = "unified.", "visual_tokenizer."
_SPECIALS = "specials"  # of the text tokenizer, where the ids do not follow from the names
_ROOT = Path(__file__).resolve().parents[1]

LOADER = '''"""OmniLoom: reads and writes text and pictures. Needs torch and safetensors.

    model = OmniLoomForGeneration.from_pretrained(FOLDER)
    pictures = model.text_to_image(["a caption"], seeds=[0])   # uint8 (B, H, W, 3)
    captions = model.image_to_text(list(pictures))
    logits = model.next_token_logits(["a text"])               # (B, vocabulary)

The modules are in the folder omniloom_model beside this file.
"""

import importlib.util
import sys
from pathlib import Path

_NAME = "omniloom_model"


def _load():
    folder = Path(__file__).resolve().parent / _NAME
    if _NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            _NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules[_NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[_NAME])
    return importlib.import_module(_NAME + ".hf.repository")


OmniLoomForGeneration = _load().OmniLoomForGeneration
'''


class OmniLoomForGeneration(OmniLoom):
    """An `OmniLoom` that is read from a repository's folder."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> OmniLoomForGeneration:
        """ValueError naming the file that is wrong."""
        parts = read_repository(folder, device)
        return cls(parts.config, parts.model, parts.tokenizer, parts.text)

    @torch.inference_mode()
    def next_token_logits(self, prompts: list[str]) -> Tensor:
        """float32 (B, vocabulary): of the token behind each prompt."""
        _, hidden = GenerationState.prefill(self.model, self.prefixes(prompts))
        return self.model.text_head(hidden).float()

    @torch.inference_mode()
    def log_likelihood(self, prompt: str, continuation: str, images: Sequence[Any] = ()) -> tuple[float, bool]:
        """Of a continuation behind a prompt and the pictures before it: the sum of its tokens' log-probabilities, and
        whether each is the likeliest."""
        ids = self.text.encode(continuation)
        if not ids:
            return 0.0, True
        state, hidden = GenerationState.prefill(self.model, self.prefixes([prompt], [list(images)]))
        before = [hidden[:, None]]
        if len(ids) > 1:
            before.append(state.feed_tokens(torch.tensor([ids[:-1]]), [len(ids) - 1]))
        logits = self.model.text_head(torch.cat(before, 1)).float()[0]
        target = torch.tensor(ids, device=logits.device)
        chosen = logits.log_softmax(-1).gather(-1, target[:, None])
        return float(chosen.sum()), bool((logits.argmax(-1) == target).all())


def write_repository(parts: Parts, folder: str | Path) -> None:
    """Write the folder, which is made if need be."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"{_UNIFIED}{name}": value for name, value in stored_state(parts.model).items()}
    if parts.tokenizer:
        state |= {f"{_VISUAL}{name}": value for name, value in parts.tokenizer.state_dict().items()}
    kept = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    own = json.loads(parts.text.to_json())
    named = own.pop("omniloom_specials", None)  # other readers of a tokenizer.json know no such key
    _write_json(folder / "tokenizer.json", own, sort_keys=True)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(parts.text))
    config = {
        "model_type": "omniloom",
        "architectures": ["OmniLoomForGeneration"],
        "torch_dtype": str(next(parts.model.parameters()).dtype).removeprefix("torch."),
        "vocab_size": parts.config.unified.vocab_size,
        "hidden_size": parts.config.unified.width,
        "num_hidden_layers": parts.config.unified.layers,
        "omniloom": document_of(parts),
        **({_SPECIALS: named} if named else {}),
    }
    _write_json(folder / "config.json", config)
    (folder / "modeling_omniloom.py").write_text(LOADER, encoding="utf-8")
    copy_modules(folder / PACKAGE)


def _write_json(path: Path, value: dict[str, Any], sort_keys: bool = False) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=sort_keys), encoding="utf-8")


def _tokenizer_config(text: TextTokenizer) -> dict[str, Any]:
    tokens = {name: text.token(number) for name, number in text.specials.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": tokens[name] for name in ("bos", "eos", "pad")},
        "additional_special_tokens": [token for name, token in tokens.items() if name not in ("bos", "eos", "pad")],
        "clean_up_tokenization_spaces": False,
    }


def copy_modules(target: Path) -> None:
    """This package, `omniloom.models`, under the name of the folder `target`; numpy is taken where it is there."""
    for path in sorted(_ROOT.rglob("*.py")):
        text = path.read_text(encoding="utf-8").replace("omniloom.models", target.name)
        if path.name != "arrays.py":
            text = text.replace("import numpy as np", f"from {target.name}.arrays import np")
        copied = target / path.relative_to(_ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(text, encoding="utf-8")


def read_repository(folder: str | Path, device: str | torch.device = "cpu") -> Parts:
    """What `write_repository` wrote. ValueError naming the file and field that is wrong."""
    from safetensors.torch import load_file

    folder = Path(folder)
    config, weights, words = (folder / name for name in ("config.json", "model.safetensors", "tokenizer.json"))
    try:
        known = json.loads(config.read_text(encoding="utf-8"))
        document, state = known["omniloom"], load_file(weights)
        text = json.loads(words.read_text(encoding="utf-8"))
    except Exception as error:  # each reader has its own for a file that is missing or wrong
        raise ValueError(f"{folder}: is no repository of this kind: {type(error).__name__}: {error}") from error
    if named := known.get(_SPECIALS):
        text["omniloom_specials"] = named
    parts = [{k.removeprefix(p): v for k, v in state.items() if k.startswith(p)} for p in (_UNIFIED, _VISUAL)]
    return assemble(
        document,
        TextTokenizer.load(json.dumps(text, ensure_ascii=False)),
        (parts[0], weights),
        (parts[1], weights) if document.get("tokenizer") else None,
        device,
        (config, words),
    )
