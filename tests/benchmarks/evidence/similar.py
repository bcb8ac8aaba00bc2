"""Which images of a set show one specimen: three rules, each with a control that counts what chance alone would join.

Borders   two images of one size are neighbours in one field of view: the last column of one goes on in the first column
          of the other (or row), by correlation. Control: the second border reversed.
Overlap   a part of one image is seen again in another: the highest normalised correlation over all shifts with at least
          a quarter of the image in common, after a high-pass filter. Control: the second image mirrored.
Stain     colour images of one staining: average linkage of their typical colours.

Images that a rule joins are one group, also through others (connected components). A wrong join costs a little balance
and no leak; hence the thresholds lie low.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse.csgraph import connected_components

BORDER_CORRELATION = 0.85
BORDER_MIN_STD = 1.5  # grey levels: an empty border fits every empty border
BORDER_MAX_STD_RATIO = 1.3
OVERLAP_CORRELATION = 0.6
OVERLAP_SIDE_PX = 80  # longer side at which overlaps are searched
OVERLAP_MIN_FRACTION = 0.25
OVERLAP_MIN_STD = 1.0  # grey levels after the high-pass filter
STAIN_DISTANCE = 25.0  # grey levels, Euclidean over the median and the 90th percentile of R, G, B

Grey = NDArray[np.float32]
Joined = NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """joined (n, n): pairs of one specimen; hits, control: how many pairs the rule found, and how many its control."""

    joined: Joined
    hits: int
    control: int


def groups(joined: Joined) -> NDArray[np.int64]:
    """Group number of each image (n,), 0..: connected components, numbered by their first image."""
    _, number = connected_components(joined | joined.T, directed=False)
    first = {g: i for i, g in reversed(list(enumerate(number.tolist())))}
    rank = {g: k for k, g in enumerate(sorted(first, key=first.__getitem__))}
    return np.array([rank[g] for g in number.tolist()], np.int64)


def by_size(images: list[NDArray[np.uint8]]) -> list[NDArray[np.intp]]:
    """Indices of images of one height and width, for each that occurs."""
    sizes = [image.shape[:2] for image in images]
    return [np.array([i for i, s in enumerate(sizes) if s == size], np.intp) for size in sorted(set(sizes))]


def neighbours(images: list[NDArray[np.uint8]]) -> Found:
    """Pairs whose borders go on in one another."""
    n, hits, control = len(images), 0, 0
    joined = np.zeros((n, n), bool)
    for part in by_size(images):
        grey = np.stack([cv2.GaussianBlur(_grey(images[i]), (0, 0), 1.0) for i in part])
        for last, first in ((grey[:, :, -1], grey[:, :, 0]), (grey[:, -1], grey[:, 0])):
            fit = _borders_fit(last, first)
            joined[np.ix_(part, part)] |= fit
            hits, control = hits + int(fit.sum()), control + int(_borders_fit(last, first[:, ::-1]).sum())
    return Found(joined, hits, control)


def overlaps(images: list[NDArray[np.uint8]]) -> Found:
    """Pairs that share a part of what they show."""
    n, hits, control = len(images), 0, 0
    joined = np.zeros((n, n), bool)
    for part in by_size(images):
        small = np.stack([_high_pass(images[i]) for i in part])
        fit, mirrored = _overlap_fit(small, small), _overlap_fit(small, small[:, :, ::-1].copy())
        joined[np.ix_(part, part)] |= fit
        hits, control = hits + int(fit.sum()), control + int(mirrored.sum())
    return Found(joined, hits, control)


def one_stain(images: list[NDArray[np.uint8]], coloured: NDArray[np.bool_]) -> Found:
    """Pairs of coloured images of one staining; images without colour are joined with nothing."""
    joined = np.zeros((len(images), len(images)), bool)
    part = np.flatnonzero(coloured)
    if len(part) > 1:
        typical = np.array([np.percentile(images[i].reshape(-1, 3), [50, 90], axis=0).ravel() for i in part])
        number = fcluster(linkage(typical, "average"), STAIN_DISTANCE, "distance")
        joined[np.ix_(part, part)] = number[:, None] == number[None]
    return Found(joined, int(np.triu(joined, 1).sum()), 0)


def is_coloured(image: NDArray[np.uint8]) -> bool:
    """Whether the channels differ: stains; fluorescence is stored as three equal channels."""
    return bool(np.ptp(image.astype(np.int16), axis=2).max() > 2)


def _grey(image: NDArray[np.uint8]) -> Grey:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.float32)


def _borders_fit(last: Grey, first: Grey) -> Joined:
    (a, std_a), (b, std_b) = _standardised(last), _standardised(first)
    correlation = a @ b.T
    np.fill_diagonal(correlation, 0)
    ratio = np.exp(np.abs(np.log(std_a[:, None] / std_b[None])))
    mean_a, mean_b = last.mean(axis=1)[:, None], first.mean(axis=1)[None]
    close = np.abs(mean_a - mean_b) < 3 + 0.15 * np.maximum(mean_a, mean_b)
    busy = np.minimum.outer(std_a, std_b) > BORDER_MIN_STD
    return (correlation > BORDER_CORRELATION) & busy & (ratio < BORDER_MAX_STD_RATIO) & close


def _standardised(borders: Grey) -> tuple[Grey, Grey]:
    centred = borders - borders.mean(axis=1, keepdims=True)
    std = np.maximum(centred.std(axis=1), 0.1)
    return centred / std[:, None] / np.sqrt(borders.shape[1]), std


def _high_pass(image: NDArray[np.uint8]) -> Grey:
    scale = OVERLAP_SIDE_PX / max(image.shape[:2])
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    small = cv2.resize(_grey(image), size, interpolation=cv2.INTER_AREA)
    return np.asarray(small - cv2.GaussianBlur(small, (0, 0), 4.0), np.float32)


def _overlap_fit(a: Grey, b: Grey) -> Joined:
    """(n, n), upper triangle: normalised correlation of a[i] and b[j] over all shifts, by Fourier transforms."""
    n, height, width = a.shape
    size = (2 * height, 2 * width)

    def spectrum(x: Grey) -> NDArray[np.complex64]:
        return np.asarray(np.fft.rfft2(x, size), np.complex64)

    def back(x: NDArray[np.complex64]) -> Grey:
        return np.asarray(np.fft.irfft2(x, size), np.float32)

    ones = spectrum(np.ones((height, width), np.float32))
    count = np.maximum(back(ones * ones.conj()), 1)
    enough = count > OVERLAP_MIN_FRACTION * height * width
    fa, fb = spectrum(a), spectrum(b)
    sum_a, sum_b = back(fa * ones.conj()), back(ones * fb.conj())
    var_a = np.maximum(back(spectrum(a**2) * ones.conj()) - sum_a**2 / count, 1e-3)
    var_b = np.maximum(back(ones * spectrum(b**2).conj()) - sum_b**2 / count, 1e-3)
    busy_a, busy_b = (enough & (v > count * OVERLAP_MIN_STD**2) for v in (var_a, var_b))
    fit = np.zeros((n, n), bool)
    for i in range(n - 1):
        later = slice(i + 1, None)
        cross = back(fa[i] * fb[later].conj()) - sum_a[i] * sum_b[later] / count
        correlation = np.where(busy_a[i] & busy_b[later], cross / np.sqrt(var_a[i] * var_b[later]), 0)
        fit[i, later] = correlation.max(axis=(1, 2)) > OVERLAP_CORRELATION
    return fit
