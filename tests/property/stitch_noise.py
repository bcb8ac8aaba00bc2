"""Predictors that err, on the oracle's cases and on scenes: what they do to views, and what may be lost through it."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np

from cytopipe.infer.stitching import Views
from tests.property import stitch_reference as oracle
from tests.property.stitch_scenes import CLASSES, Cell, Scene, clipped, numbered_views, octagon


@dataclass(frozen=True)
class Noise:
    """How far a predictor is off: each view for itself, and so differently in each window.

    jitter_px       each edge of the box moves by up to this
    score           the score moves by up to this
    flip_fraction   views that get another class
    drop_fraction   objects of which one of the windows that show them says nothing
    """

    jitter_px: int = 0
    score: float = 0.0
    flip_fraction: float = 0.0
    drop_fraction: float = 0.0


NOISES = {
    "boxes": Noise(jitter_px=2),
    "scores": Noise(score=0.3),
    "classes": Noise(flip_fraction=0.3),
    "drops": Noise(drop_fraction=0.5),
    "all": Noise(2, 0.3, 0.3, 0.5),
}


# ---- on the oracle's cases


def draw_noisy_case(seed: int, noise: Noise):
    """One of the oracle's cases, every cut view reported as its clip, and its views; None where the seed gives none."""
    rng = random.Random(seed)
    case = oracle.make_case(rng, noise.jitter_px)
    if case is None:
        return None
    views = oracle.predict(rng, case, "clip", noise.jitter_px)
    shown = Counter(view.truth for view in views)
    unlucky = {k: rng.randrange(shown[k]) for k in sorted(shown) if shown[k] > 1 and rng.random() < noise.drop_fraction}
    left, seen = [], Counter()
    for view in views:
        is_dropped = unlucky.get(view.truth) == seen[view.truth]
        seen[view.truth] += 1
        if not is_dropped:
            view.score = float(np.float32(_noisy_score(view.score, noise, rng)))
            view.cls = _noisy_class(view.cls, noise, rng)
            left.append(view)
    return case, left


def judge(case, views, result, noise: Noise) -> Counter:
    """What became of the objects within the bound, and of larger ones, under noise. Of those within the bound:

    unseen   no window reported it whole: dropped, or a sliver at the slide's border that its errors ate
    missed   in no result at all, unseen or taken
    flagged  in no whole one, but in pieces
    taken    some window reported it whole, but it is whole in no result: a view of another was taken for its twin
    lost     the same, without such a view: against the rule
    doubled  results too many
    """
    _, windows, objects, g, bound, _ = case
    largest = bound - 2 * noise.jitter_px
    small = {k for k, (_, _, b, _) in enumerate(objects) if max(b[2] - b[0], b[3] - b[1]) <= largest}
    found = Counter(k for _, vs in result for k in {v.truth for v in vs})
    whole = {vs[0].truth for kind, vs in result if kind == "whole"}
    reported_whole = {v.truth for v in views if v.d >= g} & small
    taken = {
        views[i].truth
        for first, *others in oracle.twins(windows, views, g)
        for i in others
        if views[i].d >= g and views[i].truth != views[first].truth
    }
    gone = reported_whole - whole
    return Counter(
        cases=1,
        small=len(small),
        unseen=len(small - reported_whole),
        missed=sum(not found[k] for k in small),
        flagged=sum(found[k] > 0 and k not in whole for k in small),
        taken=len(gone & taken),
        lost=len(gone - taken),
        doubled=sum(max(0, found[k] - 1) for k in small),
        large=len(objects) - len(small),
        vanished=len({v.truth for v in views} - small - set(found)),
    )


# ---- on scenes


def noisy_views(scene: Scene, noise: Noise, rng: random.Random) -> dict[int, Views]:
    """What every window reports of a scene: its clip of each cell that it shows, each drawn anew with its errors."""
    seen: dict[int, list[tuple[Cell, int]]] = defaultdict(list)
    for number, cell in enumerate(scene.cells):
        reports = []
        for k, frame in enumerate(scene.windows.boxes):
            view = clipped(_jittered(cell, noise.jitter_px, rng), frame)
            if view is not None:
                score = float(np.float32(_noisy_score(cell.score, noise, rng)))
                reports.append((k, replace(view, label=_noisy_class(cell.label, noise, rng), score=score)))
        if len(reports) > 1 and rng.random() < noise.drop_fraction:
            del reports[rng.randrange(len(reports))]
        for k, view in reports:
            seen[k].append((view, number))
    return {k: numbered_views(rng.sample(seen[k], len(seen[k]))) for k in range(len(scene.windows))}


def _jittered(cell: Cell, jitter_px: int, rng: random.Random) -> Cell:
    if not jitter_px:
        return cell
    x0, y0, x1, y1 = (edge + rng.uniform(-jitter_px, jitter_px) for edge in cell.box)
    box = (min(x0, x1 - 0.5), min(y0, y1 - 0.5), x1, y1)  # at least half a px wide
    return replace(cell, box=box, polygon=None if cell.polygon is None else octagon(*box))


def _noisy_score(score: float, noise: Noise, rng: random.Random) -> float:
    return min(max(score + rng.uniform(-noise.score, noise.score), 0.0), 1.0) if noise.score else score


def _noisy_class(label: int, noise: Noise, rng: random.Random) -> int:
    return (label + rng.randrange(1, CLASSES)) % CLASSES if rng.random() < noise.flip_fraction else label
