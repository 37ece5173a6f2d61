"""State that one chunk of a video leaves for the next, and how a video is cut into chunks.

In: a video, whole (B, 3, T, H, W) or frame by frame. Out: chunks for `OmniTokenizer.encode_chunks`. The first has
1 + k * temporal_patch frames and every later one k * temporal_patch; and `TemporalState`, which makes a video
that comes in chunks give the codes and pixels that it gives in one piece. The state's size depends on the grid and
on the window of time, not on the length of the video (a window of 0 sees everything, so its state grows).
Errors: `ValueError` naming the frames, sizes or direction given and expected.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class BlockMemory(NamedTuple):
    """One block's state from earlier chunks; None where there is nothing (yet). n is B * h * w.

    frames: (at most 2, B, h, w, C), the last inputs of the block's convolution.
    keys, values: (at most temporal_window - 1, n, heads, head_dim), rotated keys and values of temporal attention.
    """

    frames: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None


def remember(past: Tensor | None, new: Tensor, keep: int | None) -> tuple[Tensor, Tensor]:
    """Join earlier frames and new ones along axis 0: (all of them, a copy of the last `keep`, without gradient).

    `keep` None keeps all.
    """
    joined = new if past is None else torch.cat((past, new))
    # A copy: a view would hold the whole chunk in memory.
    start = 0 if keep is None else max(0, len(joined) - keep)
    return joined, joined[start:].detach().clone()


@dataclass
class TemporalState:
    """How far a video has come through one side of a tokenizer. A new one stands before the first frame.

    One object serves one video (or one batch of them) in one direction, encoding or decoding. No gradient flows
    from a chunk into earlier ones.
    latent_frames: how many are done. side, shape: the direction, and the (B, h, w) that all chunks share, set by
        the first chunk. stacks: the memory of each block by the name of its stack.
    """

    latent_frames: int = 0
    side: str | None = None
    shape: tuple[int, int, int] | None = None
    stacks: dict[str, list[BlockMemory]] = field(default_factory=dict)

    def enter(self, side: str, shape: tuple[int, int, int]) -> None:
        """Check that a chunk of (B, h, w) continues this video in this direction."""
        if self.side not in (None, side):
            raise ValueError(f"state: it is of a video in `{self.side}`, got it in `{side}`; each needs its own")
        if self.shape not in (None, shape):
            raise ValueError(f"chunk: expected (batch, h, w) {self.shape} as before, got {shape}")
        self.side, self.shape = side, shape

    @property
    def num_bytes(self) -> int:
        """Memory that the state holds."""
        tensors = (x for blocks in self.stacks.values() for memory in blocks for x in memory if x is not None)
        return sum(x.numel() * x.element_size() for x in tensors)


def video_chunks(video: Tensor | Iterable[Tensor], temporal_patch: int, latent_frames: int = 4) -> Iterator[Tensor]:
    """Cut a video into chunks of `latent_frames` latent frames; the first has the image frame besides.

    video: (B, 3, T, H, W), or an iterable of frames (3, H, W) or (B, 3, H, W), which is read as it is needed.
    Yields (B, 3, frames, H, W). ValueError where the frames are not 1 plus a multiple of `temporal_patch`, for an
    iterable when it ends.
    """
    if latent_frames < 1:
        raise ValueError(f"latent_frames: expected at least 1, got {latent_frames}")
    if isinstance(video, Tensor):
        if video.ndim != 5:
            raise ValueError(f"video: expected (B, 3, T, H, W), got {tuple(video.shape)}")
        _check_frames(video.shape[2], temporal_patch)
        frames: Iterable[Tensor] = video.unbind(2)
    else:
        frames = (frame if frame.ndim == 4 else frame.unsqueeze(0) for frame in video)
    return _stack_frames(frames, temporal_patch, latent_frames * temporal_patch)


def _stack_frames(frames: Iterable[Tensor], temporal_patch: int, size: int) -> Iterator[Tensor]:
    total, waiting, wanted = 0, [], 1 + size
    for frame in frames:
        waiting.append(frame)
        total += 1
        if len(waiting) == wanted:
            yield torch.stack(waiting, dim=2)
            waiting, wanted = [], size
    _check_frames(total, temporal_patch)
    if waiting:
        yield torch.stack(waiting, dim=2)


def _check_frames(total: int, temporal_patch: int) -> None:
    if total < 1 or (total - 1) % temporal_patch:
        raise ValueError(f"video: frames must be 1 plus a multiple of {temporal_patch}, got {total}")
