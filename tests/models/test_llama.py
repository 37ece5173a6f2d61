"""Starting from Llama-shaped checkpoints: the logits of `transformers`, what is refused, memory, new rows."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sampling_cases import visual
from torch import Tensor

from omniloom.models.text import TextTokenizer
from omniloom.models.unified import load_llama
from omniloom.models.unified.config import RopeScaling, SpecialIds, UnifiedConfig
from omniloom.models.unified.generation.sampling import TextSampling
from omniloom.models.unified.llama.config import architecture, config_from_llama
from omniloom.models.unified.llama.load import is_text_parameter
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.parameters import num_parameters
from omniloom.models.unified.positions import scale_frequencies

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES = {
    "llama": ("Llama", {}),
    "llama-1": ("Llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-3": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 16}),
    "llama-biases": ("Llama", {"attention_bias": True}),
    "llama-narrow": ("Llama", {"head_dim": 4}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 20}),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": (
        "Qwen2",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16, "num_key_value_heads": 1}),
    "qwen3-tied": ("Qwen3", {"head_dim": 24, "tie_word_embeddings": True, "attention_bias": True}),
}


def make(folder: Path, family: str = "Llama", dtype: torch.dtype = torch.float32, shard: str = "5GB", **fields):
    """A random model, saved by `transformers` itself. Biases and norms are moved from 0 and 1, or nobody would see
    them missing."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **fields})
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.normal_(std=0.3)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def ids(vocab_size: int = 97, rows: int = 2, length: int = 130) -> Tensor:
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def difference(model: UnifiedModel, reference, tokens: Tensor) -> float:
    mine, theirs = model.text_logits(tokens), reference(tokens).logits
    assert mine.shape == theirs.shape == (*tokens.shape, SHAPE["vocab_size"]) and theirs.abs().max() > 1
    return float((mine - theirs).abs().max())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shard", ["5GB", "40KB"], ids=["whole", "sharded"])
def test_text_logits_are_those_of_transformers(tmp_path: Path, case: str, shard: str) -> None:
    family, fields = CASES[case]
    reference = make(tmp_path, family, shard=shard, **fields)
    assert (tmp_path / "model.safetensors").exists() == (shard == "5GB")
    model = load_llama(tmp_path, latent_dim=4)
    assert model.config.rope_scheme == "tie_v2" and model.config.latent_dim == 4
    assert difference(model, reference, ids()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["llama-3", "qwen2", "qwen3"])
def test_files_of_half_precision_are_read_into_fp32(tmp_path: Path, case: str, dtype: torch.dtype) -> None:
    family, fields = CASES[case]
    reference = make(tmp_path, family, dtype, shard="30KB", **fields)
    model = load_llama(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert difference(model, reference, ids()) < 1e-4
    assert {p.dtype for p in load_llama(tmp_path, dtype=dtype).parameters()} == {dtype}


@pytest.mark.parametrize("scheme", ["rope_1d", "axial", "tie_v1", "tie_v2", "streaming"])
def test_text_is_rope_1d_to_the_last_bit_whatever_the_scheme(tmp_path: Path, scheme: str) -> None:
    make(tmp_path, "Llama", **CASES["llama-3"][1])
    plain = load_llama(tmp_path, rope_scheme="rope_1d", axes=1)
    assert torch.equal(load_llama(tmp_path, rope_scheme=scheme).text_logits(ids()), plain.text_logits(ids()))


def test_the_config_of_transformers_4_means_the_same(tmp_path: Path) -> None:
    """`rope_theta` and `rope_scaling` at the top, as all published checkpoints up to 2025 have them."""
    reference = make(tmp_path, "Llama", **CASES["llama-3"][1])
    document = json.loads((tmp_path / "config.json").read_text())
    rope = document.pop("rope_parameters")
    document |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": {"type": rope.pop("rope_type"), **rope}}
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert difference(load_llama(tmp_path), reference, ids()) < 1e-4


def test_scaled_frequencies_by_their_definition() -> None:
    scaling = RopeScaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0, original_length=100)
    for turns, wanted in ((0.5, 0.25), (1, 0.25), (2, (0.25 + 1) / 2), (2.5, 0.25 / 4 + 0.75), (3, 1), (9, 1)):
        frequency = torch.tensor([2 * math.pi * turns / 100], dtype=torch.float64)
        assert float(scale_frequencies(frequency, scaling) / frequency) == pytest.approx(wanted)
    with pytest.raises(ValueError, match="RopeScaling.high_freq_factor"):
        RopeScaling(4.0, 2.0, 2.0, 100)


@pytest.mark.parametrize("case", ["llama-biases", "qwen2", "qwen3", "llama-tied"])
def test_num_parameters_is_that_of_the_module(tmp_path: Path, case: str) -> None:
    family, fields = CASES[case]
    make(tmp_path, family, **fields)
    model = load_llama(tmp_path, latent_dim=5, time_dim=32)
    assert num_parameters(model.config) == sum(p.numel() for p in model.parameters())
    assert (model.head.weight is model.embed.weight) == model.config.tied


def test_visual_parts_are_those_of_a_fresh_model(tmp_path: Path) -> None:
    make(tmp_path)
    torch.manual_seed(5)
    model = load_llama(tmp_path, latent_dim=64, time_dim=64, axes=2)
    visual = {name: p for name, p in model.named_parameters() if not is_text_parameter(name)}
    assert {name.split(".")[0] for name in visual} == {"visual_in", "time", "visual_norm", "visual_out"}
    fresh = dict(UnifiedModel(model.config).named_parameters())
    for name, value in visual.items():
        value, wanted = value.detach(), fresh[name].detach()
        assert value.shape == wanted.shape and torch.isfinite(value).all()
        if value.ndim < 2 or not wanted.any():
            assert torch.equal(value, wanted), name
        else:
            assert float(value.std()) == pytest.approx(float(wanted.std()), rel=0.1)
    torch.manual_seed(5)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.parameters(), load_llama(tmp_path, latent_dim=64, time_dim=64, axes=2).parameters())
    )


def test_the_vocabulary_grows_only_on_request(tmp_path: Path) -> None:
    make(tmp_path)
    plain = load_llama(tmp_path)
    assert plain.config.vocab_size == 97
    assert (plain.config.specials.bos, plain.config.specials.eos) == (1, 2)
    specials = SpecialIds(pad=97, bos=1, eos=2, boi=98, bov=99, eoi=100)
    grown = load_llama(tmp_path, specials=specials, latent_dim=3)
    assert grown.config.vocab_size == 101 and grown.config.specials == specials
    logits = grown.text_logits(ids())
    torch.testing.assert_close(logits[..., :97], plain.text_logits(ids()), rtol=0, atol=1e-5)
    for table in (grown.embed.weight, grown.head.weight):
        known, new = table[:97], table[97:]
        assert len(set(map(tuple, new.tolist()))) == 4  # apart from each other
        assert (new - known.mean(0)).abs().mean() < 0.2 * known.std()
    assert load_llama(tmp_path, vocab_size=128).config.vocab_size == 128
    with pytest.raises(ValueError, match="vocab_size.*97"):
        load_llama(tmp_path, vocab_size=96)


def test_special_ids_come_from_the_file() -> None:
    def specials(**fields) -> SpecialIds:
        values = {"architectures": ["LlamaForCausalLM"], "num_attention_heads": 4, "num_hidden_layers": 1, **fields}
        return config_from_llama({**SHAPE, **values}, "config.json").specials

    assert specials() == SpecialIds(pad=96, bos=95, eos=94, boi=93, bov=92, eoi=91)
    assert specials(bos_token_id=96, eos_token_id=[94, 3], pad_token_id=0) == SpecialIds(0, 96, 94, 95, 93, 92)
    assert specials(bos_token_id=7, eos_token_id=7, pad_token_id=7) == SpecialIds(96, 7, 7, 95, 94, 93)  # Qwen
    assert specials(bos_token_id=1, eos_token_id=2, pad_token_id=-1) == SpecialIds(96, 1, 2, 95, 94, 93)
    with pytest.raises(ValueError, match="SpecialIds.bos"):
        SpecialIds(bos=3, eos=3)


def test_a_loaded_model_denoises_and_generates(tmp_path: Path) -> None:
    from omniloom.models.unified import DiffusionConfig, generate_text, generate_visual
    from omniloom.models.unified.layouts import prefix_for_text, prefix_for_visual

    make(tmp_path, "Qwen3", **CASES["qwen3-tied"][1])
    specials = SpecialIds(pad=97, bos=1, eos=2, boi=98, bov=99, eoi=100)
    model = load_llama(tmp_path, latent_dim=3, specials=specials).eval()
    latents = generate_visual(
        model, [prefix_for_visual([5, 6], specials)], (1, 2, 3), visual(diffusion=DiffusionConfig(), num_steps=2)
    )
    assert latents.shape == (1, 1, 2, 3, 3) and torch.isfinite(latents).all()
    made = generate_text(model, [prefix_for_text([5, 6], specials)], TextSampling(max_new_tokens=8), stop_ids=[])[0]
    line = torch.tensor([[specials.bos, 5, 6, *made]])
    logits = model.text_logits(line)[0, 2:-1]
    logits[:, [97, 98, 99, 100, 1, 2]] = -torch.inf
    assert logits.argmax(-1).tolist() == made


# ---- what is refused ----


def edit(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures"),
        ({"architectures": None}, "architectures"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "rope_parameters.rope_type"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.rope_type"),
        ({"rope_parameters": {**LLAMA3, "factor": None}}, "rope_parameters: factor"),
        ({"rope_parameters": {**LLAMA3, "high_freq_factor": 0.5}}, "rope_parameters: RopeScaling.high_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters"),
        ({"rope_parameters": {"rope_theta": -1}}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"num_hidden_layers": 0}, "num_hidden"),
        ({"hidden_size": "48"}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": 5}, "vocab_size"),
        ({"hidden_size": 50, "head_dim": None}, "hidden_size: expected a multiple of num_attention_heads"),
        ({"num_key_value_heads": 3}, "kv_heads"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 4096}, "sliding_window"),
        ({"architectures": ["MistralForCausalLM"]}, "sliding_window"),
        ({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True}, "use_sliding_window"),
    ],
)
def test_a_config_that_is_not_read_is_refused(tmp_path: Path, fields: dict, key: str) -> None:
    make(tmp_path)
    edit(tmp_path, **fields)
    with pytest.raises(ValueError, match="config.json.*" + key.replace(".", r"\.")):
        load_llama(tmp_path)


@pytest.mark.parametrize("shard", ["5GB", "40KB"], ids=["whole", "sharded"])
@pytest.mark.parametrize("damage", ["missing", "shape", "dtype", "unknown"])
def test_wrong_tensors_are_named(tmp_path: Path, shard: str, damage: str) -> None:
    make(tmp_path, "Qwen2", shard=shard)
    key = "model.layers.1.self_attn.k_proj.bias"
    file = next(path for path in sorted(tmp_path.glob("*.safetensors")) if key in load_file(path))
    state = load_file(file)
    state |= {
        "missing": {},
        "shape": {key: state[key][:-1]},
        "dtype": {key: state[key].to(torch.int32)},
        "unknown": {key: state[key]},
    }[damage]
    if damage == "missing":
        del state[key]
    save_file({name: value.contiguous() for name, value in state.items()}, file)
    if damage == "unknown":  # a model with biases, of an architecture that has none
        edit(tmp_path, architectures=["LlamaForCausalLM"])
        with pytest.raises(ValueError, match=r"safetensors.*: model\.layers\.\d\.self_attn\.[qkv]_proj\.bias: config"):
            load_llama(tmp_path)
        return
    with pytest.raises(ValueError, match=f"{file.name}: {key}: {'missing' if damage == 'missing' else 'expected'}"):
        load_llama(tmp_path)


@pytest.mark.parametrize("own", [False, True], ids=["a copy", "its own"])
def test_a_head_in_a_file_that_says_tied(tmp_path: Path, own: bool) -> None:
    """transformers keeps a head that differs from the embedding, whatever the config says; old files hold a copy, and
    rotary tables."""
    make(tmp_path, tie_word_embeddings=True)
    state = load_file(tmp_path / "model.safetensors")
    head = state["model.embed_tokens.weight"].clone()
    if own:
        head[3:9] += 0.5
    state |= {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6), "lm_head.weight": head}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert torch.equal(reference.lm_head.weight, head)
    model = load_llama(tmp_path, tied=True)
    assert model.config.tied is not own and difference(model, reference, ids()) < 1e-4


def test_rows_that_no_token_trained_start_as_new_ones(tmp_path: Path) -> None:
    """Qwen pads its vocabulary with rows of zeros, where ids that its tokenizer lacks may fall."""
    make(tmp_path, "Qwen2", dtype=torch.float32)
    state = load_file(tmp_path / "model.safetensors")
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        state[key][90:] = 0
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    plain = load_llama(tmp_path)
    filled = load_llama(tmp_path, vocab_size=100, new_tokens={91, 93, 98})
    for name in ("embed.weight", "head.weight"):
        before, after = plain.get_parameter(name), filled.get_parameter(name)
        kept = [i for i in range(97) if i not in (91, 93)]
        assert torch.equal(after[kept], before[kept]) and not after[[90, 92]].any()
        for row in (91, 93, 98):
            spread = before[kept].std(dim=0)
            assert after[row].any() and ((after[row] - before[kept].mean(dim=0)).abs() < spread).all()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config.json: cannot be read"):
        load_llama(tmp_path)
    make(tmp_path, shard="40KB")
    index = tmp_path / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    shard = tmp_path / sorted(set(document["weight_map"].values()))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{shard.name}: cannot be read"):
        load_llama(tmp_path)
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name}: cannot be read"):
        load_llama(tmp_path)
    shard.write_bytes(whole)
    for bad in ({"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}, {"weight_map": []}, []):
        index.write_text(json.dumps(bad))
        with pytest.raises(ValueError, match="index.json: weight_map"):
            load_llama(tmp_path)
    index.write_text(json.dumps({"weight_map": {k: v for k, v in document["weight_map"].items() if "norm" not in k}}))
    with pytest.raises(ValueError, match="index.json: .*norm.weight: missing"):
        load_llama(tmp_path)
    index.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="holds neither model.safetensors nor"):
        load_llama(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="config.json: expected a JSON object"):
        load_llama(tmp_path)


def test_what_the_checkpoint_decides_is_confirmed_or_refused(tmp_path: Path) -> None:
    make(tmp_path)
    assert load_llama(tmp_path, width=48, tied=False).config.width == 48
    with pytest.raises(ValueError, match="width: .*config.json says 48, got 64"):
        load_llama(tmp_path, width=64)
    with pytest.raises(ValueError, match="UnifiedConfig.rope_scheme"):
        load_llama(tmp_path, rope_scheme="nope")


def test_a_missing_key_means_what_it_means_to_transformers() -> None:
    for family in ("Llama", "Mistral", "Qwen2", "Qwen3"):
        values = {
            "architectures": [f"{family}ForCausalLM"],
            "vocab_size": 97,
            "hidden_size": 128,
            "num_hidden_layers": 1,
            "num_attention_heads": 32,
            "intermediate_size": 64,
            "sliding_window": None,
        }
        theirs = getattr(transformers, f"{family}Config")(**values)
        ours = architecture(values, "config.json")
        heads = theirs.num_attention_heads
        assert ours["kv_heads"] == theirs.num_key_value_heads
        assert ours["head_dim"] == (getattr(theirs, "head_dim", None) or theirs.hidden_size // heads)
        assert (ours["tied"], ours["norm_eps"]) == (theirs.tie_word_embeddings, theirs.rms_norm_eps)
        assert ours["rope_base"] == theirs.rope_parameters["rope_theta"] and ours["rope_scaling"] is None


# ---- cost, imports, configs ----


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_loading_holds_one_copy(tmp_path: Path) -> None:
    """Anonymous memory, which alone counts: pages of the mapped file can be dropped at any time."""
    make(tmp_path / "small")
    make(
        tmp_path / "large",
        dtype=torch.bfloat16,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=6,
        vocab_size=4096,
    )
    code = f"""
import threading, torch
from omniloom.models.unified import load_llama
torch.set_num_threads(1)
def anonymous():
    return next(int(line.split()[1]) * 1024 for line in open('/proc/self/status') if line.startswith('RssAnon'))
load_llama({str(tmp_path / "small")!r})  # what torch itself loads at first use
before, peak, done = anonymous(), 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
model = load_llama({str(tmp_path / "large")!r})
done.set()
watcher.join()
size = sum(p.numel() * 4 for p in model.parameters())
assert size > 80e6, size
assert peak - before < 1.2 * size, (peak - before) / size
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_name_is_cheap() -> None:
    code = "import sys, omniloom.models.unified.llama.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_bundles_config_comes_back_from_json() -> None:
    from dataclasses import asdict

    config = UnifiedConfig(
        vocab_size=40, latent_dim=3, width=48, heads=4, qkv_bias=True, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192)
    )
    assert UnifiedConfig(**json.loads(json.dumps(asdict(config)))) == config
    with pytest.raises(ValueError, match="UnifiedConfig.rope_scaling.nope: unknown field"):
        UnifiedConfig(vocab_size=40, latent_dim=3, rope_scaling={"nope": 1})
    with pytest.raises(ValueError, match="UnifiedConfig.rope_scaling: .*low_freq_factor"):
        UnifiedConfig(vocab_size=40, latent_dim=3, rope_scaling={"factor": 1.0})


# ---- the tokenizer beside it ----


def foreign(bos: str, eos: str, extra: tuple[str, ...] = ()):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        ["a red square"] * 4,
        trainers.BpeTrainer(vocab_size=300, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.add_special_tokens([*extra, *dict.fromkeys((bos, eos))])
    return tokenizer


@pytest.mark.parametrize(
    ("bos", "eos"), [("<s>", "</s>"), ("<|begin_of_text|>", "<|end_of_text|>"), ("<|endoftext|>", "<|endoftext|>")]
)
def test_a_language_models_tokenizer_keeps_its_own_ends(bos: str, eos: str) -> None:
    theirs = foreign(bos, eos, ("<|im_start|>",))
    size = theirs.get_vocab_size()
    loaded = TextTokenizer.load(theirs.to_str())
    wanted = {
        "bos": theirs.token_to_id(bos),
        "eos": theirs.token_to_id(eos),
        "pad": size,
        "boi": size + 1,
        "bov": size + 2,
        "eoi": size + 3,
    }
    assert loaded.specials == wanted and loaded.vocab_size == size + 4
    assert SpecialIds(**loaded.specials).bos == theirs.token_to_id(bos)
    text = f"a red {bos} square{eos}<boi><|im_start|>"
    assert not set(loaded.encode(text)) & {*wanted.values(), theirs.token_to_id("<|im_start|>")}
    assert loaded.decode([wanted["bos"], *loaded.encode(text), wanted["eos"]]) == text
    assert loaded.encode("a red square") == theirs.encode("a red square", add_special_tokens=False).ids
    again = TextTokenizer.load(loaded.to_json())
    assert (again.specials, again.digest, again.vocab_size) == (loaded.specials, loaded.digest, loaded.vocab_size)


def test_plain_tokens_that_look_like_ends_are_no_ends() -> None:
    from tokenizers import Tokenizer, models

    loaded = TextTokenizer.load(Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "x": 2}, unk_token="x")).to_str())
    assert loaded.specials == {"pad": 3, "bos": 4, "eos": 5, "boi": 6, "bov": 7, "eoi": 8}


def test_a_tokenizer_file_neither_cuts_nor_pads() -> None:
    theirs = foreign("<s>", "</s>")
    whole = theirs.encode("a red square " * 20).ids
    theirs.enable_truncation(5)
    theirs.enable_padding(length=400)
    loaded = TextTokenizer.load(theirs.to_str())
    assert loaded.encode("a red square " * 20) == whole
    assert [len(ids) for ids in loaded.encode_batch(["a", "a red square"])] == [
        len(loaded.encode("a")),
        len(loaded.encode("a red square")),
    ]
