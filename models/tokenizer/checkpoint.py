"""Released OmniTokenizer checkpoints, in and out: a Lightning file to an `OmniTokenizer(compat="official")` and back.

In: a PyTorch zip file with `state_dict` and `hyper_parameters["args"]`, a pickled `argparse.Namespace` whose two
switches of causality are spelled `casual_*` (as released) or `causal_*`. Out: the tokenizer in eval mode, float32.
Nothing in such a file is run: the pickle may name tensors' rebuild functions, storages, OrderedDict and Namespace;
every other class or function it names becomes a `Placeholder`, which takes any arguments and does nothing.
Errors: `ValueError` naming the file and the key.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from omniloom.models.tokenizer.config import TokenizerConfig
from omniloom.models.tokenizer.official.blocks import FeedForward
from omniloom.models.tokenizer.official.model import OfficialCodebook
from omniloom.models.tokenizer.omni import OmniTokenizer
from omniloom.models.tokenizer.quantizers.config import GaussianConfig, VQConfig

RENAMED = (  # ours -> published, by regular expression, in this order
    (r"^(encoder\.to_patch_emb(?:_first_frame)?)\.norm_in\.", r"\1.1."),
    (r"^(encoder\.to_patch_emb(?:_first_frame)?)\.proj\.", r"\1.2."),
    (r"^(encoder\.to_patch_emb(?:_first_frame)?)\.norm_out\.", r"\1.3."),
    (r"^(decoder\.to_pixels(?:_first_frame)?)\.", r"\1.0."),
    (r"^(pre|post)_vq\.", r"\1_vq_conv.1."),
    (r"(\.layers\.\d+)\.peg\.", r"\1.0.dsconv."),
    (r"(\.layers\.\d+\.)attention\.bias\.net\.([01])\.", r"\g<1>1.spatial_rel_pos_bias.net.\2.0."),
    (r"(\.layers\.\d+\.)attention\.bias\.net\.2\.", r"\g<1>1.spatial_rel_pos_bias.net.2."),
    (r"(\.layers\.\d+\.)attention\.", r"\g<1>1."),
    (r"(\.layers\.\d+\.)feedforward\.norm\.", r"\g<1>3.0."),
    (r"(\.layers\.\d+\.)feedforward\.up\.", r"\g<1>3.1."),
    (r"(\.layers\.\d+\.)feedforward\.down\.", r"\g<1>3.4."),
    (r"_transformer\.norm\.", "_transformer.norm_out."),
)
SPELLINGS = {name: name.replace("causal", "casual") for name in ("causal_in_temporal_transformer", "causal_in_peg")}
ONLY = {"patch_embed": "linear", "image_channels": 3, "defer_temporal_pool": False, "defer_spatial_pool": False,
        "gen_upscale": None, "use_external_codebook": False}  # fmt: skip

_UNSAID = {"n_codes": 8192, "kl_weight": 1e-6}  # what a tokenizer of the other bottleneck does not say


class Placeholder:
    """Placeholder for a class or function that a checkpoint names and that is not loaded: it keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Placeholder:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Placeholder:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    append = extend = add = __call__


def _allowed(module: str, name: str) -> Any:
    """The object of a global that may be used, else None. Functions come wrapped, classes as subclasses made for
    one load: a pickle can set attributes on what it names."""
    if (module, name) == ("collections", "OrderedDict"):
        return OrderedDict
    if (module, name) == ("argparse", "Namespace"):
        return type("Namespace", (argparse.Namespace,), {})
    if name == "AttributeDict":  # a dict that Lightning may hold the hyper-parameters in
        return type("AttributeDict", (dict,), {})
    if module in ("builtins", "__builtin__") and name in ("set", "frozenset", "complex"):
        return {"set": set, "frozenset": frozenset, "complex": complex}[name]
    if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):
        function = getattr(torch._utils, name)
        return lambda *args: function(*args)
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    if (module, name) == ("torch", "Size"):
        return torch.Size
    return None


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that finds nothing but what `_allowed` lets through, and a `Placeholder` for the rest."""

    def find_class(self, module: str, name: str) -> Any:
        found = _allowed(module, name)
        return type("Placeholder", (Placeholder,), {}) if found is None else found


def _pickle_module() -> types.SimpleNamespace:
    """The interface that `torch.load` expects of a pickle module."""
    return types.SimpleNamespace(
        __name__="restricted_pickle",
        Unpickler=RestrictedUnpickler,
        load=lambda file, **kwargs: RestrictedUnpickler(file, **kwargs).load(),
    )


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], argparse.Namespace]:
    """The state_dict and the arguments of a checkpoint file. FileNotFoundError; `ValueError` for another file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    if not _is_tensor_archive(path):
        raise ValueError(f"{path}: expected a PyTorch checkpoint (a zip archive with data.pkl)")
    try:
        content = torch.load(path, map_location="cpu", pickle_module=_pickle_module(), weights_only=False)
    except Exception as error:  # whatever a damaged or hostile archive makes the reader raise
        raise ValueError(f"{path}: unreadable checkpoint: {type(error).__name__}: {error}") from error
    state, arguments = content, None
    if isinstance(content, Mapping):
        state = content.get("state_dict")
        hyper = content.get("hyper_parameters")
        arguments = hyper.get("args") if isinstance(hyper, Mapping) else None
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: state_dict: expected a mapping of tensors, got {type(state).__name__}")
    if isinstance(arguments, Mapping) and all(isinstance(name, str) for name in arguments):
        arguments = argparse.Namespace(**arguments)
    if not isinstance(arguments, argparse.Namespace):
        found = type(arguments).__name__
        raise ValueError(f"{path}: hyper_parameters.args: expected an argparse.Namespace, got {found}")
    return dict(state), argparse.Namespace(**vars(arguments))


def _is_tensor_archive(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = {name.rsplit("/", 1)[-1] for name in archive.namelist()}
    return "data.pkl" in names and "constants.pkl" not in names  # the latter marks a compiled program


def config_from_arguments(args: argparse.Namespace, rel_bias: Literal["sdpa", "einsum"], where: str) -> TokenizerConfig:
    """The config that released arguments stand for; `where` opens the errors."""

    def get(name: str, *default: Any) -> Any:
        for spelling in (name, SPELLINGS.get(name, name)):
            if hasattr(args, spelling):
                return getattr(args, spelling)
        if not default:
            raise ValueError(f"{where}: args.{name}: missing")
        return default[0]

    for name, value in ONLY.items():
        if get(name, value) != value:
            raise ValueError(f"{where}: args.{name}: only {value!r} is supported, got {get(name)!r}")
    use_vae = bool(get("use_vae", False))
    if not use_vae and not get("l2_code", False):
        raise ValueError(f"{where}: args.l2_code: only True is supported, got False")
    try:
        width, depth = int(get("embedding_dim")), int(get("spatial_depth", 4))
        return TokenizerConfig(
            compat="official",
            patch_size=int(get("patch_size")),
            temporal_patch=int(get("temporal_patch_size")),
            width=width,
            heads=int(get("heads")),
            head_dim=int(get("dim_head")),
            mlp_width=int(float(get("ff_mult", 4.0)) * (2 / 3) * width),
            spatial_layers=get("enc_block", "t" * depth),
            temporal_layers=int(get("temporal_depth")),
            decoder_spatial_layers=get("dec_block", "t" * depth),
            window=int(get("twod_window_size", 4)),
            patch_norm=True,
            positions=get("spatial_pos", "rel"),
            rel_bias=rel_bias,
            causal_attention=bool(get("causal_in_temporal_transformer", False)),
            causal_peg=bool(get("causal_in_peg", False)),
            quantizer=_quantizer(get),
        )
    except (TypeError, ValueError) as error:
        message = str(error)
        raise ValueError(message if message.startswith(where) else f"{where}: args: {message}") from error


def _quantizer(get: Callable[..., Any]) -> VQConfig | GaussianConfig:
    latent_dim, codes = int(get("codebook_dim")), int(get("n_codes"))
    if get("use_vae", False):
        return GaussianConfig(latent_dim=latent_dim, kl_weight=float(get("kl_weight", _UNSAID["kl_weight"])))
    return VQConfig(codebook_size=codes, latent_dim=latent_dim, rotation_trick=False, restart_dead_after=0.0)


def _published_names(model: OmniTokenizer) -> Iterator[tuple[str, str, FeedForward | None]]:
    """(our name, published name, the feed-forward whose padded matrix it is) of every tensor in our state_dict."""
    for name in model.state_dict():
        published = name
        for pattern, replacement in RENAMED:
            published = re.sub(pattern, replacement, published)
        padded = re.match(r"(.*\.feedforward)\.(up|down)\.weight$", name)
        yield name, published, cast(FeedForward, model.get_submodule(padded[1])) if padded else None


def _cut(tensor: Tensor, layer: FeedForward | None) -> Tensor:
    """A matrix of a feed-forward without its padding; any other tensor as it is."""
    if layer is None:
        return tensor
    if tensor.shape[0] == 2 * layer.padded:
        return tensor.unflatten(0, (2, layer.padded))[:, : layer.inner].flatten(0, 1)
    return tensor[:, : layer.inner]


def load_official(path: str | os.PathLike[str], rel_bias: Literal["sdpa", "einsum"] = "sdpa") -> OmniTokenizer:
    """A released checkpoint as a tokenizer that computes what the published code does (arXiv 2406.09399).

    rel_bias: the published attention path. With `sdpa`, that code's choice since PyTorch 2.1, the position bias of
    `rel` checkpoints is dropped; with `einsum` it is added, and ALiBi in causal temporal blocks.
    Returns an `OmniTokenizer` in float32 and eval mode, on the CPU. Discriminators and optimizer states are left
    out. FileNotFoundError; `ValueError` naming the file and the key.
    """
    state, args = read_checkpoint(path)
    config = config_from_arguments(args, rel_bias, str(path))
    model = OmniTokenizer(config).eval()
    with torch.no_grad():
        own = model.state_dict()
        for name, published, layer in _published_names(model):
            target, given = _cut(own[name], layer), state.get(published)
            if not isinstance(given, Tensor):
                problem = "missing" if given is None else f"expected a tensor, got {type(given).__name__}"
                raise ValueError(f"{path}: state_dict.{published}: {problem}")
            if given.shape != target.shape:
                shapes = f"expected the shape {tuple(target.shape)}, got {tuple(given.shape)}"
                raise ValueError(f"{path}: state_dict.{published}: {shapes}")
            if layer is None:
                target.copy_(given)
            else:
                _put(own[name], given, layer)
    model.published_args = args  # type: ignore[assignment]  # no part of the module
    return model


def _put(target: Tensor, given: Tensor, layer: FeedForward) -> None:
    """Write an unpadded matrix of a feed-forward into its padded one."""
    if target.shape[0] == 2 * layer.padded:
        target.unflatten(0, (2, layer.padded))[:, : layer.inner] = given.unflatten(0, (2, layer.inner))
    else:
        target[:, : layer.inner] = given


def export_official(model: OmniTokenizer, path: str | os.PathLike[str]) -> None:
    """Write a tokenizer of `compat="official"` in the released layout, arguments spelled `casual_*`.

    Tensors are written in float32; arguments that only training reads are those of the checkpoint that the model
    was loaded from, if any. There are no discriminators in it. `ValueError` for any other tokenizer.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, TokenizerConfig) or config.compat != "official":
        raise ValueError('export: expected a tokenizer with compat "official"')
    own = model.state_dict()
    state = OrderedDict()
    for name, published, layer in _published_names(model):
        tensor = _cut(own[name], layer).detach().to("cpu", copy=True)
        state[published] = tensor.float() if tensor.is_floating_point() else tensor
        if published.endswith(".relative_position_bias_table"):
            state[published.replace("bias_table", "index")] = _window_index(config.window)
    args = argparse.Namespace(**_UNSAID | vars(getattr(model, "published_args", argparse.Namespace())))
    if not isinstance(model.codebook, OfficialCodebook):  # the published KL model carries an unused codebook
        unused = OfficialCodebook(VQConfig(codebook_size=args.n_codes, latent_dim=config.latent_dim)).state_dict()
        state.update({f"codebook.{name}": torch.zeros_like(tensor) for name, tensor in unused.items()})
    for name, value in _arguments(config).items():
        setattr(args, name, value)
    for name, spelling in SPELLINGS.items():
        if hasattr(args, name):
            delattr(args, name)
        setattr(args, spelling, config.causal_peg if name == "causal_in_peg" else config.causal_attention)
    torch.save({"state_dict": state, "hyper_parameters": {"args": args}}, path)


def _window_index(window: int) -> Tensor:
    """(window^2, window^2) int64: the row of the bias table for each pair of places."""
    place = torch.arange(window)
    grid = torch.stack(torch.meshgrid(place, place, indexing="ij")).flatten(1)
    offset = grid[:, :, None] - grid[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def _arguments(config: TokenizerConfig) -> dict[str, Any]:
    quantizer: Any = config.quantizer
    vae = isinstance(quantizer, GaussianConfig)
    own = {"kl_weight": quantizer.kl_weight} if vae else {"n_codes": quantizer.codebook_size}
    published = int(4.0 * (2 / 3) * config.width) == config.inner_width
    mult = 4.0 if published else 1.5 * (config.inner_width + 0.5) / config.width
    return {
        **ONLY, "embedding_dim": config.width, "heads": config.heads, "dim_head": config.head_dim, "ff_mult": mult,
        "patch_size": config.patch_size, "temporal_patch_size": config.temporal_patch,
        "enc_block": config.spatial_layers, "dec_block": config.decoder_spatial_layers,
        "spatial_depth": len(config.spatial_layers), "temporal_depth": config.temporal_layers,
        "twod_window_size": config.window, "spatial_pos": config.positions,
        "codebook_dim": quantizer.latent_dim, "l2_code": True, "use_vae": vae, **own,
    }  # fmt: skip
