"""Metrics: reconstruction, coverage, Fréchet distance, a classifier of real pictures, captions that name
a label, ranks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_RANGE = 255.0
_WINDOW, _SIGMA = 11, 1.5


def reconstruction(originals: np.ndarray, recons: np.ndarray) -> dict[str, np.ndarray]:
    """PSNR in dB and SSIM of each picture or frame, (N,) each; uint8 (N, H, W, 3) both.

    PSNR is taken per picture, so that a few bad pictures do not hide behind the mean error. SSIM (Wang et al., 2004,
    equation 13) has the paper's Gaussian window of 11 pixels, sigma 1.5, and constants 0.01 and 0.03; beyond its edges
    a picture, of 6 pixels a side at least, is mirrored; the mean of the colours. As torchmetrics has them, whose import
    takes seconds of each evaluation.
    """
    import torch

    a, b = (torch.from_numpy(x).permute(0, 3, 1, 2).double() for x in (originals, recons))
    error = (a - b).square().mean((1, 2, 3))
    # Equal pictures have no error; 100 dB stands for it, a tenth of a grey level would give 68.
    psnr = (10 * torch.log10(_RANGE**2 / error)).clamp(max=100.0)
    return {"psnr": psnr.numpy(), "ssim": _ssim(a, b).numpy()}


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    """(N, C, H, W) both -> (N,)."""
    import torch
    from torch.nn.functional import conv2d, pad

    places = torch.arange(_WINDOW, dtype=a.dtype) - _WINDOW // 2
    window = torch.softmax(-places.square() / (2 * _SIGMA**2), 0)

    def means(x: Tensor) -> Tensor:
        flat = pad(x.reshape(-1, 1, *x.shape[-2:]), [_WINDOW // 2] * 4, mode="reflect")
        return conv2d(conv2d(flat, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1)).view(x.shape)

    mean_a, mean_b, of_a, of_b, of_both = means(torch.stack([a, b, a * a, b * b, a * b]))
    c1, c2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    variances = (of_a - mean_a.square()).clamp(min=0) + (of_b - mean_b.square()).clamp(min=0)
    structure = (2 * (of_both - mean_a * mean_b) + c2) / (variances + c2)
    return (luminance * structure).mean((1, 2, 3))


def shrink(images: Sequence[np.ndarray], size: int) -> np.ndarray:
    """uint8 (H, W, 3) pictures -> float64 (N, size*size*3) in [0, 1], averaged over boxes."""
    from PIL import Image

    small = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX)) for image in images]
    return np.stack(small).reshape(len(small), -1) / 255.0


def covered(real: np.ndarray, drawn: np.ndarray, neighbours: int = 5) -> np.ndarray:
    """Of each real point whether a drawn one is nearer than its k-th real neighbour, bool (N,); (N, D) and (M, D). The
    share of them is the coverage.

    Naeem et al., arXiv 2002.09797, equation 4. It falls where the drawn ones crowd on a few modes. A neighbour is
    another point than its own: a picture that occurs k times more would have a radius of 0, within which not even the
    same picture lies, so each is a neighbour once. Every occurrence counts in the share.
    """
    points, place = np.unique(real, axis=0, return_inverse=True)
    if len(points) <= neighbours:
        raise ValueError(f"coverage needs more than {neighbours} real examples that differ, got {len(points)}")
    radius = np.sort(distances(points, points), axis=1)[:, neighbours]  # column 0 is the point itself
    return (distances(points, drawn).min(axis=1) < radius)[place.reshape(-1)]


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Fréchet distance of the normal laws fitted to rows of features, (N, D) and (M, D), in float64:
    |mean_a - mean_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2)) (Heusel et al., arXiv 1706.08500, equation 6).

    With A and B the centred rows over sqrt(N - 1) and sqrt(M - 1), S_a = A^T A and S_b = B^T B, and the trace of the
    root is the sum of the singular values of A B^T. That is exact for covariances of any rank: nothing is added to
    their diagonals.
    """
    means, roots = _moments(a, b)
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return float(((means[0] - means[1]) ** 2).sum() + sum((root**2).sum() for root in roots) - 2 * shared)


def frechet_parts(a: np.ndarray, b: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """`frechet` and what each row of a, (N,), and of b, (M,), adds to it: the derivative by its weight (the distance's
    influence function), whose mean is 0 on each side.

    Of b, with the rows b_i of B, the derivative of its covariance's trace is M|b_i|^2, that of the singular values' sum
    M sum_k s_k v_ik^2 / 2 with B's own side of the singular vectors, and that of the means' part
    2 (mean_b - mean_a) (x_i - mean_b).
    """
    means, roots = _moments(a, b)
    away = means[1] - means[0]
    centred = [x - mean for x, mean in zip((a, b), means, strict=True)]
    turned = []
    # A side's own rows against the other's root, which has as few rows as there are features or less.
    for x, root in ((centred[0], roots[1]), (centred[1], roots[0])):
        left, values, _ = np.linalg.svd(x / np.sqrt(len(x) - 1) @ root.T, full_matrices=False)
        turned.append((left**2 @ values, float(values.sum())))
    shared = turned[0][1]
    parts = []
    for x, (own, total), sign in zip(centred, turned, (-1, 1), strict=True):
        spread = (x**2).sum(axis=1) / (len(x) - 1)
        parts.append(2 * sign * (x @ away) + len(x) * spread - spread.sum() - len(x) * own + total)
    distance = (away**2).sum() + sum((root**2).sum() for root in roots) - 2 * shared
    return float(distance), parts[0], parts[1]


def _moments(a: np.ndarray, b: np.ndarray) -> tuple[list[np.ndarray], list[Any]]:
    """Of both sides the mean and a root of the covariance, R of A = QR: it has A's singular values against anything, in
    D rows where there are more."""
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a Fréchet distance needs at least 2 rows on both sides, got {len(a)} and {len(b)}")
    means = [x.mean(axis=0, dtype=np.float64) for x in (a, b)]
    scaled = [(x - mean) / np.sqrt(len(x) - 1) for x, mean in zip((a, b), means, strict=True)]
    return means, [np.linalg.qr(x, mode="r") for x in scaled]


def rank(scores: np.ndarray) -> float:
    """The place of the first of the scores among all, 1 for the highest; a tie with another counts half. NaN where one
    is not finite: compared with anything it would look like the best."""
    if not np.isfinite(scores).all():
        return math.nan
    return 1 + float((scores[1:] > scores[0]).sum() + 0.5 * (scores[1:] == scores[0]).sum())


def less_over_more(a: float, b: float) -> float:
    """How like two amounts are, from 0 to 1: the less over the more, 1 where both are nothing."""
    return min(a, b) / max(a, b) if max(a, b) > 0 else 1.0


def repeated(values: Sequence[int], count: int = 3) -> float:
    """Share of the runs of so many values that stood before in the sequence; 0 of a shorter one."""
    runs = [tuple(values[at : at + count]) for at in range(len(values) - count + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each row of a, (N, D), to each of b, (M, D): (N, M)."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


class PixelClassifier:
    """A support vector machine on shrunken pixels, trained on real pictures alone."""

    def __init__(self, features: np.ndarray, labels: Sequence[str]):
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC

        # Pixels that never change carry nothing and are centred away; C and gamma as scikit-learn's digits example.
        self._model = make_pipeline(StandardScaler(with_std=False), SVC(C=10.0, gamma="scale"))
        self._model.fit(features, list(labels))

    @property
    def labels(self) -> list[str]:
        """What it tells apart."""
        return [str(label) for label in self._model.classes_]

    def __call__(self, features: np.ndarray) -> list[str]:
        return [str(label) for label in self._model.predict(features)]


def named_labels(text: str, labels: Sequence[str]) -> set[str]:
    """The labels that a text names as whole words; of overlapping ones the longest ("fire truck", not "truck")."""
    words = {label: re.escape(label.replace("_", " ").lower()) for label in labels}
    pattern = "|".join(f"(?:{words[label]})" for label in sorted(words, key=lambda label: -len(words[label])))
    by_word = {label.replace("_", " ").lower(): label for label in labels}
    return {by_word[found] for found in re.findall(rf"\b(?:{pattern})\b", text.lower())} if labels else set()
