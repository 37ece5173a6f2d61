"""Chameleon, Emu3 and Janus: the logits of `transformers`, in and out; texts and pictures in one sequence; what is
refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import open_models
import pytest
import torch
import transformers
from open_models import CASES, CODES, LATENTS, TOKENS, VOCABULARY
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor

from omniloom.models.unified import Segment, SpecialIds, collate, load_llama
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.generation.cache import GenerationState
from omniloom.models.unified.generation.draw import draw_and_go_on
from omniloom.models.unified.generation.sampling import VisualSampling
from omniloom.models.unified.llama.config import architecture
from omniloom.models.unified.llama.families import FAMILIES, described
from omniloom.models.unified.llama.write import left_out, write_back
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.parameters import num_parameters

SPECIALS = SpecialIds(pad=0, bos=1, eos=2, boi=3, bov=4, eoi=5)
PICTURE = torch.tensor([3, 0, 7, 7, 1, 5])


# Of a model that was trained, codes that are tokens have rows of their own: texts are compared without them.
WORDS = torch.tensor([number for number in range(VOCABULARY) if number not in TOKENS])


def ids(some: Tensor | None = None, rows: int = 2, length: int = 60) -> Tensor:
    known = torch.arange(VOCABULARY - 1) if some is None else some[:-1]
    return known[torch.randint(len(known), (rows, length), generator=torch.Generator().manual_seed(1))]


def load(folder: Path, **fields) -> UnifiedModel:
    return load_llama(folder, latent_dim=None, codebook_size=CODES, specials=SPECIALS, **fields).eval()


def mixed(model: UnifiedModel) -> tuple[list[int], Tensor, Tensor]:
    """A document with a picture between texts: its ids, with the picture's 0; logits of all its labels' places in
    order; logits of the codes."""
    before, after = [1, 11, 60, 12], [14, 80, 13, 2]
    picture = Segment("visual", codes=PICTURE.numpy(), grid=(1, 2, 3), objective="next_code")
    document = [Segment("text", ids=before), picture, Segment("text", ids=after)]
    length = sum(segment.length for segment in document)
    batch = collate([[document]], length, model.config)
    part = batch.parts["codes"]
    with torch.no_grad():
        text, outputs = model(batch, {"codes": part.values}, {}, {"codes": part.index - 1})
    line = [*before, SPECIALS.boi, *[0] * len(PICTURE), SPECIALS.eoi, *after]
    return line, torch.stack([batch.label_index.float(), *text.T]), outputs["codes"]


def expected(reference, line: list[int]) -> tuple[Tensor, Tensor, slice]:
    """The same document by `transformers`: logits of the vocabulary and of codes at every place."""
    place = slice(line.index(SPECIALS.boi) + 1, line.index(SPECIALS.eoi))
    with torch.no_grad():
        embeddings = reference.get_input_embeddings()(torch.tensor([line])).clone()
        embeddings[0, place] = open_models.embed_codes(reference, PICTURE)
        hidden = open_models.hidden_of(reference, embeddings)[0]
        return reference.lm_head(hidden), open_models.code_logits(reference, hidden), place


def difference(model: UnifiedModel, reference, some: Tensor | None = None) -> float:
    """Of the logits that `transformers` gives itself, of and behind `some` tokens; Chameleon's forbids pictures in
    texts."""
    tokens = ids(some)
    with torch.no_grad():
        mine, theirs = model.text_logits(tokens), reference(tokens).logits
    assert mine.shape == theirs.shape
    compared = torch.zeros(VOCABULARY, dtype=torch.bool)
    compared[slice(None) if some is None else some] = True
    forbidden = (theirs == torch.finfo(torch.float32).min).all(0).all(0)
    assert forbidden.nonzero().flatten().tolist() in ([], sorted(TOKENS))
    compared &= ~forbidden
    assert theirs[..., compared].abs().max() > 1
    return float((mine - theirs)[..., compared].abs().max())


def check_equal(model: UnifiedModel, reference, some: Tensor | None = None) -> None:
    assert difference(model, reference, some) < 1e-4
    line, text, codes = mixed(model)
    vocabulary, of_codes, place = expected(reference, line)
    labelled = text[0].long()
    assert len(labelled) == len(line) - len(PICTURE) - 2  # each text behind the first token
    columns = torch.arange(VOCABULARY) if some is None else some
    assert (text[1:].T - vocabulary[labelled])[:, columns].abs().max() < 1e-4
    assert codes.shape == (len(PICTURE), CODES) and codes.abs().max() > 1
    of_codes = of_codes[place.start - 1 : place.stop - 1]
    if some is not None:  # up to one number a place
        codes, of_codes = (logits - logits.mean(-1, keepdim=True) for logits in (codes, of_codes))
    assert (codes - of_codes).abs().max() < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_logits_of_texts_and_pictures_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    reference = open_models.make(tmp_path, case, shard="30KB" if case == "chameleon" else "5GB")
    model = load(tmp_path)
    assert model.config.rope_scheme == "rope_1d" and model.config.representations == ("codes",)
    assert num_parameters(model.config) == sum(p.numel() for p in model.parameters())
    check_equal(model, reference)


@torch.no_grad()
def disturb(model: UnifiedModel) -> None:
    """As a training in full would: every weight moves by itself."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        noise = torch.empty_like(parameter).normal_(generator=generator)
        parameter.add_(0.1 * parameter.std(unbiased=False).clamp(min=0.01) * noise)


@pytest.mark.parametrize(("case", "shard"), [*((case, "5GB") for case in CASES), ("chameleon", "60KB")])
def test_what_is_written_back_loads_with_equal_logits(tmp_path: Path, case: str, shard: str) -> None:
    open_models.make(tmp_path / "start", case, shard=shard)
    model = load(tmp_path / "start")
    disturb(model)
    write_back(model, tmp_path / "start", tmp_path / "out")
    assert {f.name for f in (tmp_path / "out").iterdir()} == {f.name for f in (tmp_path / "start").iterdir()}
    reference = open_models.read(tmp_path / "out")
    check_equal(model, reference, None if "janus" in case else WORDS)
    check_equal(load(tmp_path / "out"), reference)


def test_codes_are_no_likelier_in_texts_than_training_left_them(tmp_path: Path) -> None:
    """All rows of the codes' head may move by one vector, which no choice among codes sees: in texts, which are
    predicted against all tokens, they would drown the words."""
    open_models.make(tmp_path / "start", "emu3")
    model = load(tmp_path / "start")
    before = model.text_logits(ids(WORDS)).detach()
    with torch.no_grad():
        model.code_out.weight += 3 * model.norm.weight  # an arbitrary direction
    write_back(model, tmp_path / "start", tmp_path / "out")
    with torch.no_grad():
        after = open_models.read(tmp_path / "out")(ids(WORDS)).logits
    assert (after - before).abs().max() < 1e-4


def tensors(folder: Path) -> dict[str, Tensor]:
    return {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("case", CASES)
def test_an_untouched_model_is_written_back_to_the_last_bit(tmp_path: Path, case: str) -> None:
    open_models.make(tmp_path / "start", case, shard="50KB")
    write_back(load(tmp_path / "start"), tmp_path / "start", tmp_path / "out")
    assert same(tensors(tmp_path / "start"), {k: v for k, v in tensors(tmp_path / "out").items()})


def test_parts_that_are_no_language_models_stay_to_the_last_bit(tmp_path: Path) -> None:
    open_models.make(tmp_path / "start", "janus")
    model = load(tmp_path / "start")
    disturb(model)
    write_back(model, tmp_path / "start", tmp_path / "out")
    before, after = tensors(tmp_path / "start"), tensors(tmp_path / "out")
    for key, value in before.items():
        is_other = any(part in key for part in ("vqmodel", "vision_model", "model.aligner"))
        assert torch.equal(value, after[key]) == is_other, key


def test_a_vocabulary_that_has_grown_is_written(tmp_path: Path) -> None:
    open_models.make(tmp_path / "start", "emu3")
    specials = SpecialIds(pad=0, bos=1, eos=2, boi=97, bov=98, eoi=99)
    model = load_llama(tmp_path / "start", latent_dim=None, codebook_size=CODES, specials=specials).eval()
    write_back(model, tmp_path / "start", tmp_path / "out")
    reference = open_models.read(tmp_path / "out")
    tokens = torch.randint(100, (2, 40), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert reference(tokens).logits.shape[-1] == 100
        assert (model.text_logits(tokens) - reference(tokens).logits).abs().max() < 1e-4


def test_half_precision_is_read_into_fp32_and_written_so(tmp_path: Path) -> None:
    copy.deepcopy(open_models.built("chameleon")).bfloat16().save_pretrained(tmp_path / "start")
    assert json.loads((tmp_path / "start" / "config.json").read_text())["dtype"] == "bfloat16"
    model = load(tmp_path / "start")
    disturb(model)
    write_back(model, tmp_path / "start", tmp_path / "out")
    own = transformers.ChameleonForConditionalGeneration.from_pretrained(tmp_path / "out").eval()  # its own dtype
    assert own.dtype == torch.float32
    check_equal(model, own, WORDS)


def test_codes_stand_where_the_config_puts_them(tmp_path: Path) -> None:
    """By `transformers`' own mapping of codes to tokens and back."""
    for case, mapping in (("chameleon", "bpe2img"), ("emu3", "bpe2img")):
        reference = open_models.make(tmp_path / case, case)
        values = json.loads((tmp_path / case / "config.json").read_text())
        codes = described(values, "config.json").codes
        theirs = getattr(reference.model.vocabulary_mapping, mapping)
        assert codes.tokens == TOKENS == tuple(sorted(theirs, key=theirs.get))


def test_a_text_alone_takes_no_codes(tmp_path: Path) -> None:
    reference = open_models.make(tmp_path / "start", "janus")
    model = load_llama(tmp_path / "start", latent_dim=None)
    assert model.config.representations == () and difference(model, reference) < 1e-4
    disturb(model)
    write_back(model, tmp_path / "start", tmp_path / "out")
    assert difference(model, open_models.read(tmp_path / "out")) < 1e-4
    kept = [key for key in tensors(tmp_path / "start") if "generation_" in key]
    assert kept and all(torch.equal(tensors(tmp_path / "start")[k], tensors(tmp_path / "out")[k]) for k in kept)


def change(folder: Path, **fields) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    ("case", "fields", "message"),
    [
        ("chameleon", {"vocabulary_map": None}, "config.json: vocabulary_map: expected an object"),
        ("chameleon", {"vocabulary_map": {"IMGIMGAZ": 3}}, "an id of its own for each code from 0 to 7, got 1"),
        ("chameleon", {"vocabulary_map": {"IMGIMGKZ": 3}}, "'IMGIMGKZ': expected a code's number"),
        ("chameleon", {"mlp_bias": True}, "config.json: mlp_bias: expected False"),
        ("emu3", {"text_config": None}, "config.json: text_config: expected an object"),
        ("janus", {"vq_config": {"hidden_act": "relu"}}, "config.json: vq_config: hidden_act"),
        ("janus", {"vq_config": {"projection_dim": 7}}, "projection_dim: expected the language model's hidden_size 48"),
        ("janus", {"text_config": {"model_type": "gemma"}}, "text_config: model_type: expected 'llama'"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, case: str, fields: dict, message: str) -> None:
    open_models.make(tmp_path, case)
    change(tmp_path, **fields)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_a_tensor_that_no_part_has_is_named(tmp_path: Path) -> None:
    open_models.make(tmp_path, "janus")
    held = tensors(tmp_path) | {"model.generation_head.extra": torch.zeros(2)}
    with pytest.raises(ValueError, match="codebook_size: .* has 8 codes, got 16"):
        load_llama(tmp_path, latent_dim=None, codebook_size=16)
    save_file({k: v for k, v in held.items() if "vision_head.bias" not in k}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="model.generation_head.vision_head.bias: missing"):
        load(tmp_path)


def test_what_a_family_cannot_have_is_refused(tmp_path: Path) -> None:
    open_models.make(tmp_path / "start", "chameleon")
    values = json.loads((tmp_path / "start" / "config.json").read_text())
    shape = load(tmp_path / "start").config
    other = UnifiedConfig(**{f: getattr(shape, f) for f in ("vocab_size", "width", "layers", "heads", "specials")})
    with pytest.raises(ValueError, match="UnifiedConfig.kv_heads: .*config.json has 2, the model 4"):
        write_back(UnifiedModel(other), tmp_path / "start", tmp_path / "out")
    skipping = load(tmp_path / "start", long_skips=True)
    with pytest.raises(ValueError, match="UnifiedConfig.long_skips"):
        write_back(skipping, tmp_path / "start", tmp_path / "out")
    with pytest.raises(ValueError, match="UnifiedConfig.modality_experts"):
        write_back(load(tmp_path / "start", modality_experts="feed_forward"), tmp_path / "start", tmp_path / "out")
    with pytest.raises(ValueError, match="UnifiedConfig.joined_frame: .* has no place for it, the model True"):
        write_back(load(tmp_path / "start", joined_frame=True), tmp_path / "start", tmp_path / "out")
    both = load_llama(tmp_path / "start", latent_dim=3, codebook_size=CODES)
    assert left_out(both.config, values, "config.json") == ("latents",)


def test_files_are_read_and_written_one_at_a_time(tmp_path: Path) -> None:
    open_models.make(tmp_path / "start", "janus", shard="50KB")
    model = load(tmp_path / "start")
    write_back(model, tmp_path / "start", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    for key, name in index["weight_map"].items():
        with safe_open(tmp_path / "out" / name, "pt") as file:
            assert key in file.keys()
    assert len({*index["weight_map"].values()}) > 2


@pytest.mark.parametrize("case", CASES)
def test_modules_are_called_as_the_last_names_say(case: str) -> None:
    """By these an adapter's folder names what it is on."""
    reference = open_models.built(case)
    body = FAMILIES[type(reference).__name__].names[-1].body
    assert {f"{body}layers.{i}.self_attn.q_proj" for i in range(3)} <= {name for name, _ in reference.named_modules()}


@pytest.mark.parametrize("name", ["Chameleon", "Emu3", "Janus"])
def test_a_config_that_is_silent_means_what_it_means_to_transformers(name: str) -> None:
    text = {"vocab_size": 9, "hidden_size": 2048, "intermediate_size": 8, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 32, "model_type": "llama"}
    letters = "ABCDEFGHIJ"
    names = {
        "Chameleon": {f"IMGIMG{''.join(letters[int(d)] for d in str(code))}Z": code for code in range(8192)},
        "Emu3": {f"<|visual token {code:06d}|>": code for code in range(32768)},
    }
    whole = {"vq_config": {}, "architectures": [f"{name}ForConditionalGeneration"], "vocabulary_map": names.get(name)}
    found = architecture(whole | (text if name == "Chameleon" else {"text_config": text}), "config.json")
    config = getattr(transformers, f"{name}Config")(**(text if name == "Chameleon" else {"text_config": text}))
    theirs = config if name == "Chameleon" else config.text_config
    assert found["tied"] == config.tie_word_embeddings
    assert found["norm_eps"] == theirs.rms_norm_eps and found["kv_heads"] == theirs.num_key_value_heads
    assert found["rope_base"] == theirs.rope_parameters["rope_theta"]
    assert found["code_dim"] == (config.vq_config.embed_dim if name == "Janus" else None)
    assert found["norm_after"] is False and found["qk_norm"] == (name == "Chameleon")


def test_a_bagels_tower_of_texts_is_read_and_written_back(tmp_path: Path) -> None:
    start, out = tmp_path / "start", tmp_path / "out"
    start.mkdir()
    reference = open_models.bagel(start)
    model = load_llama(start, latent_dim=None, specials=SPECIALS).eval()
    assert (model.config.qkv_bias, model.config.out_bias, model.config.qk_norm) == (True, False, True)
    assert model.config.rope_base == 1e6 and not model.config.tied
    assert difference(model, reference) < 1e-4
    disturb(model)
    write_back(model, start, out)
    assert {file.name for file in out.iterdir()} == {file.name for file in start.iterdir()}
    assert difference(model, open_models.read_bagel(out)) < 1e-4
    assert difference(load_llama(out, latent_dim=None, specials=SPECIALS).eval(), open_models.read_bagel(out)) < 1e-4
    before, after = (load_file(folder / "ema.safetensors") for folder in (start, out))
    assert before.keys() == after.keys()
    for key, value in before.items():
        is_other = "_moe_gen" in key or not key.startswith("language_model.")
        assert torch.equal(value, after[key]) == is_other, key
    own = json.loads((out / "llm_config.json").read_text())
    assert own["torch_dtype"] == "float32" and "architectures" not in own
    assert (out / "config.json").read_bytes() == (start / "config.json").read_bytes()


AROUND = (SPECIALS.boi, SPECIALS.eoi)


def start_from_bagel(folder: Path, **fields) -> UnifiedModel:
    return load_llama(folder, latent_dim=LATENTS, specials=SPECIALS, **fields).eval()


def test_a_bagels_tower_of_latents_is_read_and_written_back(tmp_path: Path) -> None:
    start, out = tmp_path / "start", tmp_path / "out"
    start.mkdir()
    reference = open_models.bagel(start)
    model = start_from_bagel(start)
    assert max(open_models.bagel_difference(model, start)) < 1e-4 and difference(model, reference) < 1e-4
    assert num_parameters(model.config) == sum(p.numel() for p in model.parameters())
    values = json.loads((start / "llm_config.json").read_text())
    told = {"architectures": ["BagelForConditionalGeneration"], "llm_config": values}
    assert left_out(model.config, told, "config.json") == ()
    disturb(model)
    write_back(model, start, out)
    assert (
        max(open_models.bagel_difference(model, out)) < 1e-4
        and max(open_models.bagel_difference(start_from_bagel(out), out)) < 1e-4
    )
    assert min(open_models.bagel_difference(model, start)) > 0.01
    before, after = (load_file(folder / "ema.safetensors") for folder in (start, out))
    assert before.keys() == after.keys()
    for key, value in before.items():
        is_other = key.startswith(("vit_", "connector.", "latent_pos_embed."))
        assert torch.equal(value, after[key]) == is_other, key


def test_a_bagel_draws_as_its_authors_do(tmp_path: Path) -> None:
    """Euler's steps from noise at time 1 (ByteDance-Seed/Bagel, `generate_image`), and what follows the picture."""
    open_models.bagel(tmp_path)
    model, prompt, (rows, columns) = start_from_bagel(tmp_path), [1, 11, 60, 12], (3, 4)
    how = VisualSampling(num_steps=4, objective="latent_diffusion", diffusion=DiffusionConfig())
    with torch.no_grad():
        state, _ = GenerationState.prefill(model, [[Segment("text", ids=prompt)]])
        drawn, behind = draw_and_go_on(state, [(7, 0)], (1, rows, columns), how)
        text = model.text_head(state.feed_text([14]))[0]
    x = torch.randn(rows * columns, LATENTS, generator=torch.Generator().manual_seed(7))
    for time in (1.0, 0.75, 0.5, 0.25):
        _, (velocity,) = open_models.bagel_forward(
            tmp_path, [prompt, (x, (rows, columns), time)], (SPECIALS.boi, SPECIALS.eoi)
        )
        x = x - velocity * 0.25
    torch.testing.assert_close(drawn[0], x, atol=1e-3, rtol=1e-3)
    logits, _ = open_models.bagel_forward(
        tmp_path, [prompt, (x, (rows, columns), 0.0), [14]], (SPECIALS.boi, SPECIALS.eoi)
    )
    torch.testing.assert_close(model.text_head(behind)[0], logits[-2], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(text, logits[-1], atol=1e-3, rtol=1e-3)


def test_a_bagels_pictures_start_anew_in_another_scheme_of_positions(tmp_path: Path) -> None:
    start, out = tmp_path / "start", tmp_path / "out"
    start.mkdir()
    reference = open_models.bagel(start)
    with pytest.raises(ValueError, match="vae2llm.weight: has latents of 8 channels, the model's have 3"):
        load_llama(start, latent_dim=3, specials=SPECIALS)
    with pytest.raises(ValueError, match="modality_experts: .* says 'all', got None; leave it out"):
        load_llama(start, latent_dim=LATENTS, specials=SPECIALS, modality_experts=None)
    model = load_llama(start, latent_dim=3, specials=SPECIALS, rope_scheme="tie_v2").eval()
    assert difference(model, reference) < 1e-4 and not model.visual_out.weight.any()
    write_back(model, start, out)
    assert same(*(load_file(folder / "ema.safetensors") for folder in (start, out)))
    state = load_file(start / "ema.safetensors")
    state["latent_pos_embed.pos_embed"][3] += 0.1
    save_file(state, start / "ema.safetensors")
    with pytest.raises(ValueError, match="latent_pos_embed.pos_embed: expected sinusoids"):
        start_from_bagel(start)
    change(start, interpolate_pos=True)
    with pytest.raises(ValueError, match="interpolate_pos: expected False"):
        start_from_bagel(start)
