"""A frozen vision encoder: a plain vision transformer with the weights of SigLIP, SigLIP 2, DINOv2 or CLIP.

In: pixels in [-0.5, 0.5], (B, 3, H, W), any height and width that the patch divides. Out: a feature a patch,
(B, h, w, width): the last layer's after the final norm, class and register tokens left out. `load_vit` reads a local
folder as `transformers` saves one; `models.tokenizer.vit_config` says which architectures.
Sources: ViT, arXiv 2010.11929; SigLIP, 2303.15343 and 2502.14786; DINOv2, 2304.07193; registers, 2309.16588; CLIP,
2103.00020, whose final norm was trained on the class token alone.
The class token's position is added to it, and layer scales are multiplied into the matrices before them, when the
weights are read.
Errors: `ValueError` naming the file and the key, or what pixels would fit.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniloom.models.fused import swiglu
from omniloom.models.hf.config_json import read_json
from omniloom.models.hf.weights import Checkpoint, open_checkpoint
from omniloom.models.norms import LayerNorm
from omniloom.models.tokenizer.base import RGB
from omniloom.models.tokenizer.vit_config import ViTConfig, vit_config

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
# Parts of a checkpoint that no patch's feature depends on.
_SIGLIP_UNUSED = (
    "text_model.",
    "logit_scale",
    "logit_bias",
    "head.",
    "vision_model.head.",
    "vision_model.embeddings.position_ids",
)
_DINOV2_UNUSED = ("embeddings.mask_token",)
_CLIP_UNUSED = (
    "text_model.",
    "text_projection.",
    "visual_projection.",
    "logit_scale",
    "logit_bias",
    "vision_model.embeddings.position_ids",
)


class Block(nn.Module):
    """Pre-norm attention over all tokens and feed-forward, each residual: (B, N, width) -> same."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads, self.activation = config.heads, config.activation
        self.norm1 = LayerNorm(config.width, eps=config.norm_eps)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm2 = LayerNorm(config.width, eps=config.norm_eps)
        self.up = nn.Linear(config.width, config.mlp_width * (2 if config.activation == "swiglu" else 1))
        self.down = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        inner = self.up(self.norm2(x))
        if self.activation == "swiglu":
            return x + self.down(swiglu(inner))
        if self.activation == "quick_gelu":
            return x + self.down(inner * torch.sigmoid(1.702 * inner))
        return x + self.down(F.gelu(inner, approximate="tanh" if self.activation == "gelu_tanh" else "none"))


class ViT(nn.Module):
    """The encoder; its parameters ask for no gradient."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch = nn.Conv2d(RGB, config.width, config.patch_size, stride=config.patch_size)
        self.positions = nn.Parameter(torch.zeros(config.grid**2, config.width))
        self.prefix = nn.Parameter(torch.zeros(config.prefix, config.width))
        self.pre_norm = LayerNorm(config.width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = LayerNorm(config.width, eps=config.norm_eps)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(config, name)).view(RGB, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, pixels: Tensor, affine: bool = True) -> Tensor:
        """Features (B, h, w, width); without `affine`, in float32 before the final norm's learned scale and shift, so
        that each has mean 0 and variance 1."""
        tokens, grid = self._tokens(pixels)
        x = tokens[:, len(self.prefix) :].unflatten(1, grid)
        if affine:
            return self.norm(x)
        return F.layer_norm(x.float(), (self.config.width,), eps=self.config.norm_eps)

    def on_grid(self, pixels: Tensor, h: int, w: int, affine: bool = True) -> Tensor:
        """Features (B, h, w, width) on a grid of another patch: the encoder sees the picture scaled."""
        size = (h * self.config.patch_size, w * self.config.patch_size)
        if pixels.shape[2:] != size:
            pixels = F.interpolate(pixels.float(), size=size, mode="bicubic", align_corners=False, antialias=True)
        return self(pixels, affine)

    def class_token(self, pixels: Tensor) -> Tensor:
        """The class token after the final norm, (B, width). ValueError where the encoder has none."""
        if not len(self.prefix):
            raise ValueError("encoder: has no class token")
        return self.norm(self._tokens(pixels)[0][:, 0])

    def _tokens(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The last layer's tokens (B, prefix + h w, width), and (h, w)."""
        patch = self.config.patch_size
        if pixels.ndim != 4 or pixels.shape[1] != RGB or any(side < patch or side % patch for side in pixels.shape[2:]):
            expected = f"(B, 3, H, W) with H and W multiples of {patch}"
            raise ValueError(f"pixels: expected {expected}, got {tuple(pixels.shape)}")
        x = self.patch(((pixels + 0.5 - self.mean) / self.std).to(self.patch.weight.dtype))
        h, w = x.shape[2:]
        x = x.flatten(2).mT + self._positions(h, w)
        x = self.pre_norm(torch.cat((self.prefix.expand(len(x), -1, -1).to(x.dtype), x), dim=1))
        for block in self.blocks:
            x = block(x)
        return x, (h, w)

    def _positions(self, h: int, w: int) -> Tensor:
        """(h * w, width): the learned ones, stretched over another grid."""
        side = self.config.grid
        if (h, w) == (side, side):
            return self.positions
        square = self.positions.float().T.reshape(1, -1, side, side)
        found = F.interpolate(square, size=(h, w), mode="bicubic", align_corners=False, antialias=self.config.antialias)
        return found[0].flatten(1).T.to(self.positions.dtype)


def read_vit_config(folder: Path) -> ViTConfig:
    """The shape of a local folder's encoder."""
    preprocessor = folder / PREPROCESSOR
    given = read_json(preprocessor) if preprocessor.is_file() else None
    return vit_config(read_json(folder / CONFIG), str(folder / CONFIG), given, str(preprocessor))


def load_vit(folder: str | Path) -> ViT:
    """The encoder of a local folder in float32, in eval mode on the CPU.

    Equal to `transformers`' model of the folder but for rounding. Files in fp32, bf16 and fp16 are read.
    """
    folder = Path(folder)
    model = ViT(read_vit_config(folder)).eval()
    with open_checkpoint(folder) as checkpoint, torch.no_grad():
        reader = _Reader(checkpoint)
        prefixed = (_read_clip, _CLIP_UNUSED) if model.config.pre_norm else (_read_dinov2, _DINOV2_UNUSED)
        read, unused = prefixed if model.config.prefix else (_read_siglip, _SIGLIP_UNUSED)
        read(model, reader)
        checkpoint.refuse_unknown(reader.seen, lambda key: key.startswith(unused))
    return model


class _Reader:
    """Fills parameters from a checkpoint; `seen` are the keys that it has read."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.seen: set[str] = set()

    def tensor(self, key: str, shape: tuple[int, ...]) -> Tensor:
        self.seen.add(key)
        return self.checkpoint.read(key, shape).float()

    def fill(self, module: nn.Module, *keys: str, scale: str | None = None) -> None:
        """Weight and bias of a layer from those of `keys`, one below the other; `scale`: a factor on each row."""
        for name, parameter in module.named_parameters():
            parts = parameter.chunk(len(keys))
            for part, key in zip(parts, keys, strict=True):
                part.copy_(self.tensor(f"{key}.{name}", tuple(part.shape)))
            if scale:
                parameter.mul_(self.tensor(scale, (len(parameter),)).view(-1, *(1 for _ in parameter.shape[1:])))


def _read_siglip(model: ViT, reader: _Reader) -> None:
    root = _root(reader)
    reader.fill(model.patch, f"{root}embeddings.patch_embedding")
    model.positions.copy_(reader.tensor(f"{root}embeddings.position_embedding.weight", tuple(model.positions.shape)))
    _read_layers(model, reader, root)


def _read_clip(model: ViT, reader: _Reader) -> None:
    root, width = _root(reader), model.config.width
    model.patch.weight.copy_(reader.tensor(f"{root}embeddings.patch_embedding.weight", tuple(model.patch.weight.shape)))
    cast(Tensor, model.patch.bias).zero_()
    positions = reader.tensor(f"{root}embeddings.position_embedding.weight", (1 + model.config.grid**2, width))
    model.positions.copy_(positions[1:])
    model.prefix[0] = reader.tensor(f"{root}embeddings.class_embedding", (width,)) + positions[0]
    reader.fill(model.pre_norm, f"{root}pre_layrnorm")  # as the checkpoints spell it
    _read_layers(model, reader, root)


def _root(reader: _Reader) -> str:
    """Without the text part, transformers 5 leaves the name of the vision part away."""
    return "vision_model." if "vision_model.post_layernorm.weight" in reader.checkpoint else ""


def _read_layers(model: ViT, reader: _Reader, root: str) -> None:
    """The blocks and the final norm, under the names that SigLIP and CLIP share."""
    reader.fill(model.norm, f"{root}post_layernorm")
    for number, block in enumerate(model.blocks):
        layer = f"{root}encoder.layers.{number}"
        reader.fill(block.norm1, f"{layer}.layer_norm1")
        reader.fill(block.qkv, *(f"{layer}.self_attn.{part}_proj" for part in "qkv"))
        reader.fill(block.out, f"{layer}.self_attn.out_proj")
        reader.fill(block.norm2, f"{layer}.layer_norm2")
        reader.fill(block.up, f"{layer}.mlp.fc1")
        reader.fill(block.down, f"{layer}.mlp.fc2")


def _read_dinov2(model: ViT, reader: _Reader) -> None:
    config = model.config
    reader.fill(model.patch, "embeddings.patch_embeddings.projection")
    positions = reader.tensor("embeddings.position_embeddings", (1, 1 + config.grid**2, config.width))[0]
    model.positions.copy_(positions[1:])
    model.prefix[0] = reader.tensor("embeddings.cls_token", (1, 1, config.width))[0, 0] + positions[0]
    if config.prefix > 1:
        model.prefix[1:] = reader.tensor("embeddings.register_tokens", (1, config.prefix - 1, config.width))[0]
    reader.fill(model.norm, "layernorm")
    gated = config.activation == "swiglu"
    for number, block in enumerate(model.blocks):
        layer = f"encoder.layer.{number}"
        reader.fill(block.norm1, f"{layer}.norm1")
        reader.fill(block.qkv, *(f"{layer}.attention.attention.{part}" for part in ("query", "key", "value")))
        reader.fill(block.out, f"{layer}.attention.output.dense", scale=f"{layer}.layer_scale1.lambda1")
        reader.fill(block.norm2, f"{layer}.norm2")
        reader.fill(block.up, f"{layer}.mlp.{'weights_in' if gated else 'fc1'}")
        reader.fill(
            block.down, f"{layer}.mlp.{'weights_out' if gated else 'fc2'}", scale=f"{layer}.layer_scale2.lambda1"
        )
