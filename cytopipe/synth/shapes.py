"""Outlines: polygons that could be a nucleus, a cell, a folded cell. Pure geometry, no colour, no class.

Enters: a random generator and sizes.  Leaves: vertices (n, 2) float64, x y, in the unit of the sizes, closed
implicitly, in the order of their angle around the centre. An outline is a *star*: a radius for each of n evenly
spaced angles; so it never crosses itself, and what lies inside is a comparison of radii.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Star:
    """A star-shaped outline: `radii` (n,) float64 at the angles 2 pi k / n around `centre` (2,) float64."""

    centre: F64
    radii: F64

    @property
    def vertices(self) -> F64:
        """(n, 2) float64."""
        return self.centre + self.radii[:, None] * _directions(len(self.radii))

    @property
    def reach(self) -> float:
        """The largest radius."""
        return float(self.radii.max())

    def depth(self, points: F64) -> F64:
        """How far each of the points (m, 2) lies inside, along the ray from the centre; negative outside."""
        offset = points - self.centre
        angle = np.arctan2(offset[:, 1], offset[:, 0]) * (len(self.radii) / (2 * np.pi))
        return np.asarray(_interpolated(self.radii, angle) - np.hypot(offset[:, 0], offset[:, 1]))

    def scaled(self, factor: float) -> Star:
        """The same shape around the same centre."""
        return Star(self.centre, self.radii * factor)

    def grown_around(self, other: Star, margin: float) -> Star:
        """This outline, pushed outwards where needed so that `other` keeps `margin` from it along each ray."""
        offset = other.vertices - self.centre
        distance = np.hypot(offset[:, 0], offset[:, 1]) + margin
        angle = np.arctan2(offset[:, 1], offset[:, 0]) * (len(self.radii) / (2 * np.pi))
        slot = np.round(angle).astype(int)
        radii = self.radii.copy()
        # Three slots: an edge of this outline may pass inside of a vertex of the other between two of its own angles.
        for shift in (-1, 0, 1):
            np.maximum.at(radii, (slot + shift) % len(radii), distance)
        return Star(self.centre, radii)


def nucleus_outline(
    rng: np.random.Generator, diameter: float, aspect: float, irregularity: float, points: int = 32
) -> Star:
    """A nucleus: an ellipse of that equivalent diameter and axis ratio.

    Its contour is disturbed by `irregularity`, the standard deviation as a ratio of the radius.
    """
    angles = _angles(points)
    axis = rng.uniform(0, 2 * np.pi)
    radii = _ellipse(angles - axis, diameter / 2, aspect)
    return Star(np.zeros(2), radii * _waves(rng, angles, irregularity, 2, 7))


def round_outline(
    rng: np.random.Generator, diameter: float, aspect: float, points: int = 48, axis: float = 0.0
) -> Star:
    """A round or spindle-shaped cell: ellipse with a slightly uneven border.

    `axis` is the direction of its length, radians.
    """
    angles = _angles(points)
    return Star(np.zeros(2), _ellipse(angles - axis, diameter / 2, aspect) * _waves(rng, angles, 0.035, 2, 6))


def polygonal_outline(rng: np.random.Generator, diameter: float, aspect: float, points: int = 64) -> Star:
    """A flat squamous cell: five to eight blunt corners, edges slightly bent, border finely uneven."""
    angles = _angles(points)
    corners = int(rng.integers(5, 9))
    at = (np.arange(corners) + rng.uniform(-0.28, 0.28, corners)) * (2 * np.pi / corners)
    out = rng.uniform(0.86, 1.16, corners)
    left = (
        np.searchsorted(at, angles, side="right") - 1
    )  # -1 is the edge that passes angle 0: the last corner, one turn back
    p, q = out[left], out[(left + 1) % corners]
    start = at[left] - 2 * np.pi * (left < 0)
    span = np.mod(at[(left + 1) % corners] - at[left], 2 * np.pi)
    along = angles - start
    edge = p * q * np.sin(span) / (p * np.sin(along) + q * np.sin(span - along))
    straightness = rng.uniform(0.55, 0.95)
    radii = edge * straightness + (1 - straightness)
    radii = 0.5 * radii + 0.25 * (np.roll(radii, 1) + np.roll(radii, -1))  # blunts the corners
    radii *= _waves(rng, angles, 0.05, 2, 5) * _waves(rng, angles, 0.012, 9, 22)
    radii *= _ellipse(angles - rng.uniform(0, 2 * np.pi), 1.0, aspect)
    area = 0.5 * np.sin(2 * np.pi / points) * float((radii * np.roll(radii, 1)).sum())
    return Star(np.zeros(2), radii * (diameter / 2) * np.sqrt(np.pi / area))


def folded(outline: F64, point: F64, normal: F64) -> tuple[F64, F64] | None:
    """Fold the part of `outline` (n, 2) beyond a line over the rest.

    The line passes `point`; its unit `normal` points to the part that is folded. Leaves the new outline and the flap,
    mirrored at the line, both with at most n + 2 vertices; None where the line does not cut the border exactly twice.
    """
    beyond = (outline - point) @ normal > 0
    turns = np.flatnonzero(beyond != np.roll(beyond, -1))
    if len(turns) != 2:
        return None
    first = turns[0] if beyond[(turns[0] + 1) % len(outline)] else turns[1]
    second = turns[1] if first == turns[0] else turns[0]
    entry, leave = _crossing(outline, int(first), point, normal), _crossing(outline, int(second), point, normal)
    n = len(outline)
    flap_count, rest_count = (second - first) % n, (first - second) % n
    flap = np.concatenate([[entry], outline[(first + 1 + np.arange(flap_count)) % n], [leave]])
    rest = np.concatenate([outline[(second + 1 + np.arange(rest_count)) % n], [entry], [leave]])
    return rest, flap - 2 * ((flap - point) @ normal)[:, None] * normal


def crease(rng: np.random.Generator, start: F64, heading: float, length: float, bend: float, points: int = 8) -> F64:
    """A bent line (points, 2): a wrinkle, a strand of mucus, a stroke of a pen."""
    headings = heading + np.cumsum(rng.normal(0, bend, points - 1))
    steps = np.stack([np.cos(headings), np.sin(headings)], axis=1) * (length / (points - 1))
    return np.concatenate([start[None], start + np.cumsum(steps, axis=0)])


def _angles(points: int) -> F64:
    return np.asarray(np.arange(points) * (2 * np.pi / points), dtype=np.float64)


def _directions(points: int) -> F64:
    angles = _angles(points)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _ellipse(angles: F64, radius: float, aspect: float) -> F64:
    """Radii of an ellipse with the area of a circle of `radius`, its long axis at angle 0."""
    a, b = radius * np.sqrt(aspect), radius / np.sqrt(aspect)
    return np.asarray(a * b / np.hypot(b * np.cos(angles), a * np.sin(angles)))


def _waves(rng: np.random.Generator, angles: F64, strength: float, lowest: int, highest: int) -> F64:
    """1 + a random Fourier series with harmonics lowest to highest, standard deviation `strength`, at least 0.4."""
    order = np.arange(lowest, highest + 1)
    weight = rng.normal(0, 1, len(order)) / np.sqrt(order)
    phase = rng.uniform(0, 2 * np.pi, len(order))
    series = (weight[:, None] * np.cos(order[:, None] * angles + phase[:, None])).sum(axis=0)
    return np.asarray(np.maximum(0.4, 1 + strength * series / np.sqrt((1 / order).sum() / 2)))


def _interpolated(radii: F64, position: F64) -> F64:
    """Distance to the border on a ray `position` slots around; between two vertices the border is their chord."""
    low = np.floor(position).astype(int)
    slot = 2 * np.pi / len(radii)
    turn = (position - low) * slot
    p, q = radii[low % len(radii)], radii[(low + 1) % len(radii)]
    return np.asarray(p * q * np.sin(slot) / (p * np.sin(turn) + q * np.sin(slot - turn)))


def _crossing(outline: F64, index: int, point: F64, normal: F64) -> F64:
    """Where the edge from vertex `index` to the next one meets the line."""
    a, b = outline[index], outline[(index + 1) % len(outline)]
    da, db = float((a - point) @ normal), float((b - point) @ normal)
    return np.asarray(a + (b - a) * (da / (da - db)))
