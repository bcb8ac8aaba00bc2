"""Which of the scored windows to store: by score, above a threshold, at random, or a mixture; within budgets, hardly
overlapping.

Enters: candidates of all slides.  Leaves: the windows picked, by slide and place.
The choice depends on the set of candidates, on no order of slides: ties are broken by slide id and place, chance is a
hash of both. Strategies of a mixture pick one after the other, in the order given, each up to its share of each
budget; what one of them cannot use (too few windows) is not given to another, so that a share is never exceeded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import UserError, nearest_fix
from cytopipe.core.seeds import seed_from

Strategy = Literal["score", "threshold", "random"]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """N windows of one slide that could be stored; lengths in px of its view at the mining resolution.

    corners  (N, 2) int64 x, y
    score    (N,) float64, suspicion; 0: nothing was found there
    grid     (N,) bool: the window lies on the grid: a candidate for `random`
    scored   (N,) bool: a candidate for `score` and `threshold`
    """

    slide_id: str
    corners: NDArray[np.int64]
    score: NDArray[np.float64]
    grid: NDArray[np.bool_]
    scored: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.corners)


@dataclass(frozen=True, slots=True, order=True)
class Picked:
    """A window to store: corner in px of the view, its score, and the strategy that picked it."""

    slide_id: str
    y: int
    x: int
    score: float
    strategy: Strategy


def parse_mixture(text: str) -> dict[Strategy, float]:
    """'score' or 'score=0.7,random=0.3' -> share of each strategy, in the order given; shares sum to 1.

    Raises UserError for an unknown strategy, one given twice, or shares that are not positive or do not sum to 1.
    """
    shares: dict[Strategy, float] = {}
    for part in text.split(","):
        name, given, number = (word.strip() for word in part.partition("="))
        strategy: Strategy | None = next((s for s in get_args(Strategy) if s == name), None)
        if strategy is None:
            raise UserError(f"unknown strategy {name!r}", where="--select", fix=nearest_fix(name, get_args(Strategy)))
        if strategy in shares:
            raise UserError(f"names {name} twice", where="--select")
        shares[strategy] = _share(number) if given else 1.0
    if not all(share > 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(f"the shares of {text!r} do not sum to 1", where="--select", fix="e.g. score=0.7,random=0.3")
    return shares


def choose(
    candidates: Sequence[Candidates],
    tile_px: int,
    shares: Mapping[Strategy, float],
    *,
    budget_per_slide: int | None,
    budget: int | None,
    min_suspicion: float,
    max_overlap_fraction: float,
    seed: int,
) -> list[Picked]:
    """The windows to store, by slide id, y, x.

    tile_px               side of every window, px of its view
    shares                strategy -> share of the budgets (`parse_mixture`)
    budget_per_slide, budget   most windows of a slide, of all; None: no limit
    min_suspicion         of windows picked by `threshold`
    max_overlap_fraction  two windows picked on a slide share at most this fraction of their area
    Raises UserError for a mixture without any budget: a share of everything is undefined.
    """
    if len(shares) > 1 and budget_per_slide is None and budget is None:
        raise UserError("a mixture needs a budget", where="--select", fix="give --budget-per-slide or --budget")
    placed = {of_slide.slide_id: _Placed(tile_px, max_overlap_fraction) for of_slide in candidates}
    per_slide, overall = _allot(budget_per_slide, shares), _allot(budget, shares)
    picked: list[Picked] = []
    for strategy in shares:
        count: Counter[str] = Counter()
        for slide_id, x, y, score in _ranked(candidates, strategy, min_suspicion, seed):
            if count.total() >= overall[strategy]:
                break
            if count[slide_id] < per_slide[strategy] and placed[slide_id].take(x, y):
                picked.append(Picked(slide_id, y, x, score, strategy))
                count[slide_id] += 1
    return sorted(picked)


class _Placed:
    """The windows picked on one slide, in buckets of one window's side: only neighbouring buckets can overlap."""

    def __init__(self, tile_px: int, max_overlap_fraction: float) -> None:
        self._tile_px, self._most_px2 = tile_px, max_overlap_fraction * tile_px**2
        self._buckets: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def take(self, x: int, y: int) -> bool:
        """Place a window, unless it shares too much with one that is there."""
        column, row = x // self._tile_px, y // self._tile_px
        near = (self._buckets.get((column + i, row + j), ()) for i in (-1, 0, 1) for j in (-1, 0, 1))
        for bucket in near:
            for other_x, other_y in bucket:
                w, h = self._tile_px - abs(x - other_x), self._tile_px - abs(y - other_y)
                if w > 0 and h > 0 and w * h > self._most_px2:
                    return False
        self._buckets.setdefault((column, row), []).append((x, y))
        return True


def _ranked(
    slides: Sequence[Candidates], strategy: Strategy, min_suspicion: float, seed: int
) -> Iterator[tuple[str, int, int, float]]:
    """(slide_id, x, y, score) of the windows a strategy may pick, best first; of equals by slide id, y, x."""
    rows = []
    for of_slide in slides:
        if strategy == "random":
            eligible = of_slide.grid
        elif strategy == "threshold":
            eligible = of_slide.scored & (of_slide.score > 0) & (of_slide.score >= min_suspicion)
        else:
            eligible = of_slide.scored & (of_slide.score > 0)
        for i in np.flatnonzero(eligible).tolist():
            x, y = of_slide.corners[i].tolist()
            score = float(of_slide.score[i])
            place = (of_slide.slide_id, y, x)
            rank = -score if strategy == "score" else seed_from(seed, strategy, *place)
            rows.append((rank, place, x, score))
    return ((place[0], x, place[1], score) for _, place, x, score in sorted(rows))


def _allot(budget: int | None, shares: Mapping[Strategy, float]) -> dict[Strategy, float]:
    """Windows for each strategy, summing to the budget (largest remainder); infinity where there is no budget."""
    if budget is None:
        return dict.fromkeys(shares, float("inf"))
    exact = {strategy: budget * share for strategy, share in shares.items()}
    allotted = {strategy: int(number + 1e-9) for strategy, number in exact.items()}
    by_remainder = sorted(shares, key=lambda strategy: allotted[strategy] - exact[strategy])
    for strategy in by_remainder[: budget - sum(allotted.values())]:
        allotted[strategy] += 1
    return {strategy: float(number) for strategy, number in allotted.items()}


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{text!r} is no share", where="--select", fix="e.g. score=0.7,random=0.3") from None
