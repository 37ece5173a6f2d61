"""The base of all visual tokenizers: an encoder, a bottleneck between two projections, a decoder, and one interface.

In: pixels in [-0.5, 0.5], (B, 3, H, W) or (B, 3, T, H, W). Out: `Encoded` on a grid (B, t, h, w), and pixels again.
A tokenizer (`omni.OmniTokenizer`, `titok.TiTok`, `rae.RAE`, `vqgan.VQGAN`) adds `grid`, `encode`, `decode` and
`load_from`.
Errors: `ValueError` naming what does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from omniloom.models.tokenizer.quantizers.base import Quantizer

RGB = 3
ENCODER_SIDE = ("encoder", "pre_vq", "codebook")
BOTTLENECK = ("codebook.", "pre_vq.", "post_vq.")  # what another quantizer needs anew


def is_in_block(name: str) -> bool:
    """Of a parameter's name: whether it is of a transformer block."""
    return ".layers." in name


class Encoded(NamedTuple):
    """Tokens of a batch. c is `latent_dim`; all floats are float32.

    codes: (B, t, h, w) int64 in [0, codebook_size), or None for a continuous bottleneck.
    latents: (B, c, t, h, w), what was quantised, in the quantizer's own range: unit length for VQ, about [-1,
        1] a channel for FSQ, the posterior's mean for KL. The nearest code of `latents` is `codes`.
    loss: scalar, the bottleneck's weighted loss. stats: detached scalars of the batch.
    z_q: (B, c, t, h, w), what the decoder reads.
    prequant: (B, input_dim, t, h, w), what the encoder gave the bottleneck: before any normalisation; of KL,
        means and then log-variances.
    """

    codes: Tensor | None
    latents: Tensor
    loss: Tensor
    stats: dict[str, Tensor]
    z_q: Tensor
    prequant: Tensor


class VisualTokenizer(nn.Module):
    """The parts and their common behaviour; `config` is the subclass's own."""

    def __init__(self, config: Any, encoder: nn.Module, decoder: nn.Module, codebook: Quantizer) -> None:
        super().__init__()
        self.config, self.encoder_frozen = config, False
        self.encoder, self.decoder, self.codebook = encoder, decoder, codebook
        self.pre_vq = nn.Linear(config.width, codebook.input_dim)
        self.post_vq = nn.Linear(codebook.dim, config.width)
        self._init_weights()

    def _init_weights(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                if name.endswith(("to_out", "proj", "down")) and ".layers." in name:
                    module.weight.data.mul_(0.5)  # residual branches start small
        # Codes have few channels: give the decoder's stream unit variance, or the first blocks drown them.
        nn.init.normal_(self.post_vq.weight, std=self.codebook.mean_square**-0.5)
        for module in self.modules():
            if hasattr(module, "clear_padding_"):
                module.clear_padding_()

    @property
    def latent_dim(self) -> int:
        return self.codebook.dim

    @property
    def codebook_size(self) -> int | None:
        """Number of codes; None for a continuous bottleneck."""
        return self.codebook.size

    @property
    def num_params(self) -> int:
        """Learned numbers, without zeros that only pad; with a codebook's averages, which are learned too."""
        embeddings = dict(self.codebook.named_buffers()).get("embeddings")
        padding = sum(getattr(module, "num_padding", 0) for module in self.modules())
        learned = sum(p.numel() for p in self.parameters()) - padding
        return learned + (0 if embeddings is None else embeddings.numel())

    def set_activation_checkpointing(self, on: bool) -> None:
        """Keep only the inputs of blocks in training passes and compute the rest again in backward."""
        for module in self.modules():
            if hasattr(module, "activation_checkpointing"):
                module.activation_checkpointing = on  # type: ignore[assignment]  # a bool, where there is one

    def freeze_encoder(self) -> None:
        """From here on the decoder alone is trained: encoder and quantizer get no gradient and stay in evaluation mode,
        so that codes and latents mean what they meant; no codebook moves, nothing is sampled."""
        self.encoder_frozen = True
        for name in ENCODER_SIDE:
            getattr(self, name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in ENCODER_SIDE if self.encoder_frozen else ():
            getattr(self, name).eval()
        return self

    def forward(self, x: Tensor, *, update_codebook: bool = False) -> tuple[Tensor, Encoded]:
        """Reconstruction of x's own shape and dtype, and the tokens on the way."""
        encoded = self.encode(x, update_codebook=update_codebook)
        recon = self._decode(encoded.z_q.movedim(1, -1)).to(x.dtype)
        return (recon.squeeze(2) if x.ndim == 4 else recon), encoded

    def _quantize(self, tokens: Tensor, update: bool) -> Encoded:
        """The encoder's output (B, t, h, w, width) through the bottleneck."""
        prequant = self.pre_vq(tokens)
        out = self.codebook(prequant, update=update)
        latents, z_q, prequant = (v.movedim(-1, 1) for v in (out.latents, out.z_q, prequant.float()))
        return Encoded(out.codes, latents, out.loss, out.stats, z_q, prequant)

    def _take(self, state: Mapping[str, Tensor], fresh: tuple[str, ...] = ()) -> None:
        """Load `state` but for the tensors whose names start with one of `fresh`. ValueError naming what is missing,
        unknown or of another shape; then nothing was loaded."""
        own = {name: value for name, value in self.state_dict().items() if not name.startswith(fresh)}
        given = {name: value for name, value in state.items() if not name.startswith(fresh)}
        missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
        misfit = sorted(name for name in own.keys() & given.keys() if own[name].shape != given[name].shape)
        for problem, names in (("missing", missing), ("unknown", unknown), ("of another shape", misfit)):
            if names:
                raise ValueError(f"tokenizer state: {problem}: {', '.join(names[:4])} ({len(names)} in all)")
        self.load_state_dict(given, strict=False)


def only_one(codes: Tensor | None, latents: Tensor | None) -> Tensor:
    """The one of codes and latents to decode; ValueError for neither and for both."""
    given = codes if latents is None else latents
    if given is None or (codes is not None and latents is not None):
        raise ValueError("decode: give either codes or latents")
    return given


def as_clip(x: Tensor) -> Tensor:
    """(B, 3, H, W) as (B, 3, 1, H, W), and a video as it is; ValueError for anything else."""
    clip = x.unsqueeze(2) if x.ndim == 4 else x
    if clip.ndim != 5 or clip.shape[1] != RGB or not clip.is_floating_point():
        expected = "float (B, 3, H, W) or (B, 3, T, H, W)"
        raise ValueError(f"pixels: expected {expected}, got {x.dtype} {tuple(x.shape)}")
    return clip
