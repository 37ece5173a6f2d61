"""Gumbel-softmax over a learned codebook: the discrete VAE (arXiv 2102.12092, sections 2.1 and A.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from omniloom.models.tokenizer import draws
from omniloom.models.tokenizer.quantizers.base import (
    DiscreteQuantizer,
    Quantized,
    entropy,
    mean_over_ranks,
    nearest_code,
    straight_through,
)
from omniloom.models.tokenizer.quantizers.config import GumbelConfig

GUMBEL_GAIN = 3.0


class GumbelQuantizer(DiscreteQuantizer):
    """The encoder gives a logit a code; in training the decoder reads a relaxed sample's mean of the codes.

    y = softmax((logits + g) / tau) with Gumbel noise g (arXiv 1611.01144, eq. 2), z_q = y @ vectors; where
    `hard`, forward takes y's largest entry alone. tau falls from 1 to `tau` along half a cosine
    over `anneal_updates` updates. Updates are counted in a buffer.
    loss = kl_weight * E[KL(p || uniform)] + balance * KL(E[p] || uniform), p = softmax(logits), over
    tokens, in nats; kl_weight grows linearly over `kl_warmup` updates.

    Against the paper, two things bring the codes into use within hundreds of updates (coloured digits at 32x32,
    512 codes: 94% of them and 22.4 dB after 240 updates; without, 6% and 22.2 dB after 400): the second term,
    which keeps the codes in equal use without making a token unsure of its own, and logits = GUMBEL_GAIN * z, as
    a fresh projection gives logits so alike that samples tell the decoder nothing.

    `codes` are the largest logits' in training too, so that use and perplexity mean the same everywhere; in
    eval mode z_q is their vectors (no gradient reaches the logits then). `latents` are the chosen vectors, not
    the expected ones, whose nearest code need not be the chosen.
    """

    def __init__(self, config: GumbelConfig) -> None:
        super().__init__(config)
        self.config = config
        self.input_dim, self.dim = config.codebook_size, config.latent_dim
        self.mean_square = float(self.dim)
        self.vectors = nn.Parameter(torch.randn(self.size, self.dim))

    def forward(self, z: Tensor, update: bool = False) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            logits, vectors = GUMBEL_GAIN * z.float(), self.vectors.float()
            log_p = logits.log_softmax(-1)
            p = log_p.exp()
            kl = (p * log_p).sum(-1).mean() + math.log(self.size)
            mean = p.flatten(0, -2).mean(0)
            if update and self.training:
                mean = mean_over_ranks(mean, p[..., 0].numel())
            imbalance = math.log(self.size) - entropy(mean)
            loss = self.kl_weight() * kl + self.config.balance * imbalance
            codes = logits.argmax(-1)
            latents = vectors[codes]
            tau = self.tau()
            z_q = latents
            if self.training:
                z_q = self._relaxed(logits, tau) @ vectors
            stats = self._use(codes, logits.isfinite().all(-1), update)
            stats |= {"kl_to_uniform": kl.detach(), "imbalance": imbalance.detach(), "tau": tau}
            return Quantized(z_q, codes, latents.detach(), loss, stats)

    def _relaxed(self, logits: Tensor, tau: Tensor) -> Tensor:
        """A sample of the relaxed distribution; where `hard`, its largest entry alone, with the relaxed gradient."""
        gumbel = -draws.exponential(torch.empty_like(logits)).log()
        soft = ((logits + gumbel) / tau).softmax(-1)
        if not self.config.hard:
            return soft
        return straight_through(soft, torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0))

    def tau(self) -> Tensor:
        """The temperature now: () float32 in [tau, 1]."""
        done = (self.updates.float() / self.config.anneal_updates).clamp(max=1.0)
        end = self.config.tau
        return end + (1.0 - end) * 0.5 * (1.0 + torch.cos(math.pi * done))

    def kl_weight(self) -> Tensor:
        """The weight of the divergence now: () float32 in [0, kl_weight]."""
        done = (self.updates.float() / max(1, self.config.kl_warmup)).clamp(max=1.0)
        return self.config.kl_weight * (done if self.config.kl_warmup else torch.ones_like(done))

    def decode_codes(self, codes: Tensor) -> Tensor:
        self._check_codes(codes)
        return self.vectors.float()[codes.long()]

    def snap(self, latents: Tensor) -> Tensor:
        vectors = self.vectors.float()
        return vectors[nearest_code(latents.float(), vectors)]
