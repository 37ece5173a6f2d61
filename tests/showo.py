"""Small random Phis of `transformers`, and Show-os of which one is the language model, in their authors' layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from omniloom.models.unified import Segment, SpecialIds, UnifiedModel, collate
from omniloom.models.unified.batch import document_length

WORDS, CODES, WEIGHTS = 80, 8, "pytorch_model.safetensors"
PHI = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def phi(vocab_size: int = 97, **fields: Any):
    """Biases and norms are no 0 and 1, or nobody would see them missing."""
    torch.manual_seed(0)
    model = transformers.PhiForCausalLM(transformers.PhiConfig(**{**PHI, "vocab_size": vocab_size, **fields}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.3)
    return model.eval()


def specials(words: int = WORDS, bos: int = 1, eos: int = 2) -> SpecialIds:
    """By the order of showlab/Show-o's prompts: [PAD], <|soi|>, <|eoi|>, <|sov|>, and six others."""
    return SpecialIds(pad=words, bos=bos, eos=eos, boi=words + 1, eoi=words + 2, bov=words + 3)


def make(folder: Path, words: int = WORDS, codes: int = CODES, **fields: Any):
    """Save a Show-o; gives its language model."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = words + 10 + codes + 1
    model = phi(rows, qk_layernorm=True, **fields)
    state = {f"showo.{name}": value.clone() for name, value in model.state_dict().items()}
    state |= {"mm_projector.0.weight": torch.randn(48, 8), "mm_projector.0.bias": torch.randn(48)}
    save_file(state, folder / WEIGHTS)
    own = {
        "_class_name": "Showo",
        "_diffusers_version": "0.30.1",
        "codebook_size": codes,
        "llm_model_path": "microsoft/phi-1_5",
        "llm_vocab_size": words,
        "load_from_showo": False,
        "mask_token_id": rows - 1,
        "num_vq_tokens": 256,
        "vocab_size": rows,
        "w_clip_vit": True,
    }
    (folder / "config.json").write_text(json.dumps(own))
    language = {**PHI, **fields, "partial_rotary_factor": 0.5, "rope_theta": 10000.0, "qk_layernorm": False}
    (folder / "llm_config.json").write_text(json.dumps({**language, "vocab_size": 51200, "hidden_act": "gelu_new"}))
    return model


def read(folder: Path):
    """The language model of a folder, by the names that its authors' code asks for."""
    own = json.loads((folder / "config.json").read_text())
    language = json.loads((folder / "llm_config.json").read_text())
    fields = {key: language[key] for key in PHI}
    model = phi(own["vocab_size"], qk_layernorm=True, **fields)
    state = {key: value for key, value in load_file(folder / WEIGHTS).items() if key.startswith("showo.")}
    model.load_state_dict({key.removeprefix("showo."): value for key, value in state.items()})
    return model


@torch.no_grad()
def omni_logits(reference, line: Sequence[int], frame: slice) -> Tensor:
    """(N, V), of a line of tokens whose places in `frame`, a picture's and the two around it, see each other, as others
    see what comes before (Show-o, arXiv 2408.12528, section 3)."""
    n = len(line)
    sees = torch.ones(n, n).tril().bool()
    sees[frame, frame] = True
    return reference(torch.tensor([line]), attention_mask=sees[None, None]).logits[0]


@torch.no_grad()
def difference(model: UnifiedModel, reference, columns: slice = slice(None), objective: str = "masked_code"):
    """Of a document with a picture between texts, some of whose codes are masked, from what the language model gives by
    itself: of all texts' logits, of those in `columns`; and of the codes' logits, but for a number that all share."""
    special, codes = model.config.specials, torch.tensor([3, 0, 7, 7, 1, 5])
    size = model.config.codebook_size
    before, after = [special.bos, 11, 60, 12], [14, 70, 13, special.eos]
    picture = Segment("visual", codes=codes.numpy(), grid=(1, 2, 3), objective=objective)
    document = [Segment("text", ids=before), picture, Segment("text", ids=after)]
    batch = collate([[document]], document_length(document) + 3, model.config)
    part, is_masked = batch.parts["codes"], objective == "masked_code"
    shown = torch.where(torch.tensor([1, 0, 0, 1, 1, 0]).bool() & is_masked, size, codes)
    places = part.index - (0 if is_masked else 1)
    text, outputs = model(batch, {"codes": shown}, {}, {"codes": places})
    first = reference.config.vocab_size - 1 - size
    line = [*before, special.boi, *(first + shown).tolist(), special.eoi, *after]
    frame = slice(len(before), len(before) + len(codes) + 2) if is_masked else slice(0)
    logits = omni_logits(reference, line, frame)
    assert logits.abs().max() > 1 and len(text) == len(line) - len(codes) - 2
    of_texts = (text - logits[batch.label_index])[:, columns]
    of_codes = [x - x.mean(-1, keepdim=True) for x in (outputs["codes"], logits[places, first : first + size])]
    assert of_codes[0].abs().max() > 1
    return float(of_texts.abs().max()), float((of_codes[0] - of_codes[1]).abs().max())
