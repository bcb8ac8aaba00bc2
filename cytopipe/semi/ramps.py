"""Ramps (METHODS 1.3): factors in [0, 1] as pure functions of the iteration number. Nothing to step, save or restore.

A loss weight is w_max · ramp(t). Ramps multiply: `Ramp.gaussian(0, 100) * Ramp.gaussian_down(50, 12.5, total=1000)`.
Below, u = clip((t − a)/(b − a), 0, 1), in iterations; where a = b, u jumps from 0 to 1 at a.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ramp:
    """A factor as a function of t. `text` is how the log names it."""

    text: str
    curve: Callable[[float], float]

    def __call__(self, t: float) -> float:
        """The factor at iteration t (0-based)."""
        return self.curve(t)

    def __mul__(self, other: Ramp) -> Ramp:
        """The product of two ramps."""
        return Ramp(f"{self.text} * {other.text}", lambda t: self.curve(t) * other.curve(t))

    @staticmethod
    def constant() -> Ramp:
        """1."""
        return Ramp("constant", lambda t: 1.0)

    @staticmethod
    def step(a: float) -> Ramp:
        """0 before iteration a, 1 from it on."""
        return Ramp(f"step({a:g})", lambda t: 1.0 if t >= a else 0.0)

    @staticmethod
    def linear(a: float, b: float) -> Ramp:
        """u."""
        return Ramp(f"linear({a:g}, {b:g})", _rising(a, b))

    @staticmethod
    def gaussian(a: float, b: float) -> Ramp:
        """0 for t < a, else exp(−5(1−u)²): starts at e⁻⁵ = 0.00674, not at 0. Papers call it sigmoid-shaped."""
        u = _rising(a, b)
        return Ramp(f"gaussian({a:g}, {b:g})", lambda t: 0.0 if t < a else math.exp(-5.0 * (1.0 - u(t)) ** 2))

    @staticmethod
    def cosine(a: float, b: float) -> Ramp:
        """(1 − cos πu)/2."""
        u = _rising(a, b)
        return Ramp(f"cosine({a:g}, {b:g})", lambda t: (1.0 - math.cos(math.pi * u(t))) / 2.0)

    @staticmethod
    def exp(a: float, b: float) -> Ramp:
        """exp(5(u−1)): starts at e⁻⁵."""
        u = _rising(a, b)
        return Ramp(f"exp({a:g}, {b:g})", lambda t: math.exp(5.0 * (u(t) - 1.0)))

    @staticmethod
    def log(a: float, b: float) -> Ramp:
        """1 − exp(−5u): ends at 0.99326, not at 1."""
        u = _rising(a, b)
        return Ramp(f"log({a:g}, {b:g})", lambda t: 1.0 - math.exp(-5.0 * u(t)))

    @staticmethod
    def gaussian_down(length: float, k: float, *, total: float) -> Ramp:
        """1 up to t = total − length, then exp(−k(1−(total−t)/length)²), which ends at e⁻ᵏ (k = 12 or 12.5)."""
        u = _rising(total - length, total)
        return Ramp(f"gaussian_down({length:g}, {k:g})", lambda t: math.exp(-k * u(t) ** 2))

    @staticmethod
    def poly(p: float, *, total: float) -> Ramp:
        """(1 − t/total)^p, 0 from t = total on: a schedule of the learning rate, p = 0.9."""
        u = _rising(0.0, total)
        return Ramp(f"poly({p:g})", lambda t: (1.0 - u(t)) ** p)


def _rising(a: float, b: float) -> Callable[[float], float]:
    if b < a:
        raise ValueError(f"ramp: ends at {b:g}, before its start at {a:g}")
    if a == b:
        return lambda t: 1.0 if t >= a else 0.0
    return lambda t: min(max((t - a) / (b - a), 0.0), 1.0)
