"""How far a semantic network looks: the radius r that blending keeps clear of window edges (DESIGN 6).

Enters: a `SegSpec`.  Leaves: px of the input. An output px p depends on no input px farther than r from it, along
either axis.

Computed, not measured: along one axis each layer maps an interval of its output to the interval of its input that it
reads; the intervals of the layers on the deepest path, and of every skip, are followed from one output px to the image.
Source: Araujo et al., Computing receptive fields, Distill 2019, equations 3 and 4, with bilinear steps added.
A test compares it with the gradient of real networks.
"""

from __future__ import annotations

from collections.abc import Callable

from cytopipe.nets.spec import SegSpec

Span = tuple[int, int]  # first and last px, both included
DENSE_LAYERS = (6, 12, 36, 24)  # of DenseNet-161's blocks, each with one 3x3 convolution


def receptive_radius_px(spec: SegSpec) -> int:
    """r: the farthest input px that can change an output px."""
    spans = _denseunet_span if spec.architecture == "denseunet161" else _unet_span(len(spec.widths))
    period = spec.stride_px  # outputs that are a stride apart look alike
    return max(max(p - low, high - p) for p in range(period) for low, high in [spans((p, p))])


def _unet_span(levels: int) -> Callable[[Span], Span]:
    """Of `UNet`: the deepest path and all skips."""

    def encoder(level: int, span: Span) -> Span:
        span = _convolved(span, 3, 1, 1, times=2)
        return span if level == 0 else encoder(level - 1, _convolved(span, 2, 2, 0))

    def decoder(level: int, span: Span) -> Span:
        if level == levels - 1:
            return encoder(level, span)
        span = _convolved(span, 3, 1, 1, times=2)
        return _hull(encoder(level, span), decoder(level + 1, _doubled(span)))

    return lambda span: decoder(0, span)


def _denseunet_span(span: Span) -> Span:
    """Of `DenseUNet`, upsampled by 4."""

    def encoder(block: int, span: Span) -> Span:
        span = _convolved(span, 3, 1, 1, times=DENSE_LAYERS[block])
        if block:
            return encoder(block - 1, _convolved(span, 2, 2, 0))
        return _convolved(_convolved(span, 3, 2, 1), 7, 2, 3)

    def decoder(block: int, span: Span) -> Span:
        if block == len(DENSE_LAYERS) - 1:
            return encoder(block, span)
        span = _convolved(span, 3, 1, 1)
        return _hull(encoder(block, span), decoder(block + 1, _doubled(span)))

    return decoder(0, _convolved(_magnified(span, 4), 3, 1, 1))


def _convolved(span: Span, kernel: int, stride: int, padding: int, times: int = 1) -> Span:
    """What a convolution or pooling reads for an interval of its output."""
    low, high = span
    for _ in range(times):
        low, high = low * stride - padding, high * stride - padding + kernel - 1
    return low, high


def _doubled(span: Span) -> Span:
    return _magnified(span, 2)


def _magnified(span: Span, factor: int) -> Span:
    """What bilinear upsampling by `factor` reads: px i lies at (i + 0.5) / factor - 0.5, between two px."""
    low, high = (2 * i + 1 - factor for i in span)
    return low // (2 * factor), high // (2 * factor) + 1


def _hull(a: Span, b: Span) -> Span:
    return min(a[0], b[0]), max(a[1], b[1])
