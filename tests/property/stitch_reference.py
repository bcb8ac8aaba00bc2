"""The stitching rule (DESIGN 6) as slow, obvious code on bit masks, with hard random cases: the oracle of the stitcher.

A slide here is a small boolean grid; an object is a mask on it; a window's predictor reports each object that it sees
as its clip (mode "clip"), or leaves half of the badly cut ones out (mode "drop"). With jitter J every report is redrawn
with its box off by up to J px (objects of at least 18 px, g = 8). `judge` counts objects within the size bound (both
sides <= O - 2g), how many of them are missed, doubled, or present as extra pieces, and larger ones that vanish.
Expected without jitter: 0 missed, 0 doubled, 0 extra. With jitter 2: 0 missed, about 1% doubled, all of them objects a
few px thin, whose two whole reports overlap by less than half. Nothing here is shared with the package.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

FAR = 10**9


@dataclass(eq=False)
class Window:
    index: int
    box: tuple[int, int, int, int]  # x0 y0 x1 y1
    inner: tuple[bool, bool, bool, bool]  # left, top, right, bottom: not on the slide's border
    mask: np.ndarray = field(repr=False)
    bits: int = field(repr=False)

    def d(self, box) -> int:
        """Least distance of a box to an inner edge, negative where it sticks out; FAR without inner edges."""
        gaps = (box[0] - self.box[0], box[1] - self.box[1], self.box[2] - box[2], self.box[3] - box[3])
        return min([gap for gap, inner in zip(gaps, self.inner, strict=True) if inner], default=FAR)


@dataclass(eq=False)
class View:
    window: Window
    bits: int = field(repr=False)
    box: tuple[int, int, int, int]
    cls: int
    score: float
    truth: int  # which object it is: for scoring only, never read by the rule
    serial: int

    @property
    def d(self) -> int:
        return self.window.d(self.box)

    @property
    def key(self):
        """(box, class, score) of the rule; what ties still goes by window, and by place among its reports."""
        return (self.box, self.cls, self.score, self.window.index, self.serial)


# ---- the rule


class Clusters:
    """Union-find that refuses to hold two views of one window."""

    def __init__(self, views: list[View]):
        self.parent = list(range(len(views)))
        self.windows = [{v.window.index} for v in views]

    def find(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        i, j = self.find(i), self.find(j)
        if i != j and not self.windows[i] & self.windows[j]:
            self.windows[i] |= self.windows[j]
            self.parent[j] = i


def greedy_pairs(windows, members, views, eligible, overlap):
    """One-to-one pairs for each pair of overlapping windows, best first; all of them in one order at the end."""
    chosen = []
    for a, b in combinations(windows, 2):
        if not a.bits & b.bits:
            continue
        options = []
        for i in members[a.index]:
            for j in members[b.index]:
                if (
                    eligible(views[i], b)
                    and eligible(views[j], a)
                    and (iou := overlap(views[i], views[j], a.bits & b.bits)) >= 0.5
                ):
                    x, y = views[i], views[j]
                    key = (-iou, x.cls != y.cls, abs(x.score - y.score), x.key, y.key)
                    options.append((*key, i, j))
        used: set[int] = set()
        for option in sorted(options):
            i, j = option[-2:]
            if i not in used and j not in used:
                used |= {i, j}
                chosen.append(option)
    return [option[-2:] for option in sorted(chosen)]


def iou(a: int, b: int) -> float:
    both = (a & b).bit_count()
    return both / (a | b).bit_count() if both else 0.0


def twins(windows: list[Window], views: list[View], g: int) -> list[list[int]]:
    """The clusters of twins, each by the numbers of its views, the one that represents it first."""
    members = defaultdict(list)
    for i, v in enumerate(views):
        members[v.window.index].append(i)

    def settled(v: View, other: Window) -> bool:
        return v.d >= g / 2 and other.d(v.box) >= g / 2

    clusters = Clusters(views)
    for i, j in greedy_pairs(windows, members, views, settled, lambda a, b, _: iou(a.bits, b.bits)):
        clusters.join(i, j)
    groups = defaultdict(list)
    for i in range(len(views)):
        groups[clusters.find(i)].append(i)
    return [sorted(group, key=lambda i: (-views[i].d, views[i].window.index)) for group in groups.values()]


def stitch(windows: list[Window], views: list[View], g: int) -> list[tuple[str, list[View]]]:
    """Objects as (kind, views): kind "whole" (one view, as it is), "joined" or "truncated" (geometry: the union)."""
    kept, left = [], []
    for best, *_ in twins(windows, views, g):
        if views[best].d >= g:
            kept.append(("whole", [views[best]]))
        elif not any(w is not views[best].window and w.d(views[best].box) >= g for w in windows):
            left.append(best)  # no other window saw this place uncut

    # pieces of objects that are larger than the overlap allows
    members = defaultdict(list)
    for i in left:
        members[views[i].window.index].append(i)
    clusters = Clusters(views)
    for i, j in greedy_pairs(
        windows, members, views, lambda *_: True, lambda a, b, common: iou(a.bits & common, b.bits & common)
    ):
        clusters.join(i, j)
    pieces = defaultdict(list)
    for i in left:
        pieces[clusters.find(i)].append(views[i])
    return kept + [("joined" if len(p) > 1 else "truncated", p) for p in pieces.values()]


# ---- hard cases


def starts(length: int, window: int, stride: int) -> list[int]:
    return [0] if length <= window else sorted({*range(0, length - window, stride), length - window})


def pack(mask: np.ndarray) -> int:
    return int.from_bytes(np.packbits(mask).tobytes(), "big")


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def draw(size, kind: str, box) -> np.ndarray:
    mask = np.zeros((size[1], size[0]), bool)
    x0, y0, x1, y1 = max(box[0], 0), max(box[1], 0), min(box[2], size[0]), min(box[3], size[1])
    if x1 > x0 and y1 > y0:
        yy, xx = np.mgrid[y0:y1, x0:x1]
        u = (xx + 0.5 - (box[0] + box[2]) / 2) / ((box[2] - box[0]) / 2)
        v = (yy + 0.5 - (box[1] + box[3]) / 2) / ((box[3] - box[1]) / 2)
        mask[y0:y1, x0:x1] = True if kind == "box" else u**2 + v**2 <= 1
    return mask


def make_case(rng: random.Random, jitter: int):
    if jitter:
        window, overlap, g, size = (
            rng.randint(130, 180),
            rng.randint(60, 80),
            8,
            (rng.randint(150, 450), rng.randint(150, 450)),
        )
    else:
        window = rng.randint(24, 70)
        overlap = rng.randint(8, window - 1)
        g, size = rng.randint(1, max(1, min(6, overlap // 4))), (rng.randint(20, 170), rng.randint(20, 170))
    bound = overlap - 2 * g
    xs, ys = starts(size[0], window, window - overlap), starts(size[1], window, window - overlap)
    if bound < 3 or len(xs) * len(ys) > 120:
        return None
    windows = []
    for y in ys:
        for x in xs:
            box = (x, y, min(x + window, size[0]), min(y + window, size[1]))
            mask = draw(size, "box", box)
            windows.append(
                Window(len(windows), box, (x > 0, y > 0, box[2] < size[0], box[3] < size[1]), mask, pack(mask))
            )
    kind, objects = rng.choice(("box", "ellipse")), []

    def add(box):
        mask = draw(size, kind, box)
        if mask.any():
            objects.append((mask, pack(mask), bounds(mask), rng.randint(0, 2)))

    for _ in range(rng.randint(5, 40) if jitter else rng.randint(1, 14)):
        if objects and not jitter and (r := rng.random()) < 0.55:
            x0, y0, x1, y1 = rng.choice(objects)[2]
            w, h = x1 - x0, y1 - y0
            if r < 0.15:
                add((x0, y0, x1, y1))  # the same box, perhaps of another class
            elif r < 0.3 and w > 3 and h > 3:
                add(
                    (
                        x0 + rng.randint(0, w // 3),
                        y0 + rng.randint(0, h // 3),
                        x1 - rng.randint(0, w // 3),
                        y1 - rng.randint(0, h // 3),
                    )
                )
            else:
                dx, dy = rng.randint(-6, 6), rng.randint(-6, 6)
                add(
                    (
                        x0 + dx,
                        y0 + dy,
                        max(x0 + dx + 2, x1 + dx + rng.randint(-3, 3)),
                        max(y0 + dy + 2, y1 + dy + rng.randint(-3, 3)),
                    )
                )
            continue
        largest = bound if rng.random() < 0.8 else rng.randint(bound, 2 * window)
        least = 18 if jitter else 2
        w, h = (rng.randint(least, max(least, largest)) for _ in "wh")
        seam = rng.choice(windows).box
        x = (
            rng.choice((seam[0], seam[2])) - rng.randint(0, w)
            if rng.random() < 0.5
            else rng.randint(-w // 2, size[0] - 1)
        )
        y = (
            rng.choice((seam[1], seam[3])) - rng.randint(0, h)
            if rng.random() < 0.5
            else rng.randint(-h // 2, size[1] - 1)
        )
        add((x, y, x + w, y + h))
    return size, windows, objects, g, bound, kind


def predict(rng: random.Random, case, mode: str, jitter: int) -> list[View]:
    size, windows, objects, g, _, kind = case
    views, scores = [], [rng.choice((0.7, 0.8, 0.9)) for _ in objects]
    for window in windows:
        seen = []
        for k, (mask, bits, box, cls) in enumerate(objects):
            if not bits & window.bits or (mode == "drop" and window.d(box) < g / 2 and rng.random() < 0.5):
                continue
            if jitter:
                off = [b + rng.randint(-jitter, jitter) for b in box]
                clip = draw(size, kind, off) & window.mask if off[2] > off[0] and off[3] > off[1] else None
                if clip is None or clip.sum() < 4:
                    continue
                seen.append((pack(clip), bounds(clip), cls, scores[k] + rng.uniform(-0.05, 0.05), k))
            else:
                clip = mask & window.mask
                seen.append((pack(clip), bounds(clip), cls, scores[k], k))
        rng.shuffle(seen)
        views += [View(window, *report, serial) for serial, report in enumerate(seen)]
    return views


def judge(case, views, result, jitter: int) -> Counter:
    _, _, objects, g, bound, _ = case
    small = {
        k for k, (_, _, b, _) in enumerate(objects) if max(b[2] - b[0], b[3] - b[1]) <= bound - (4 if jitter else 0)
    }
    tally = Counter(cases=1, large=len(objects) - len(small))
    found = Counter(k for _, vs in result for k in {v.truth for v in vs})
    tally["vanished"] = sum(
        not found[k] for k in range(len(objects)) if k not in small and any(v.truth == k for v in views)
    )
    if jitter:  # geometry is not exact: count by identity, for objects that some window saw whole
        sure = {v.truth for v in views if v.d >= g} & small
        tally.update(
            small=len(sure), missed=sum(not found[k] for k in sure), doubled=sum(max(0, found[k] - 1) for k in sure)
        )
        return tally
    due = Counter((objects[k][1], objects[k][3]) for k in small)
    got = Counter()
    for _, vs in result:
        alike = len(vs) == 1 and any(
            v.truth not in small and v.window is vs[0].window and v.bits == vs[0].bits and v.cls == vs[0].cls
            for v in views
        )
        if len(vs) == 1 and (vs[0].bits, vs[0].cls) in due:
            got[vs[0].bits, vs[0].cls] += 1
        elif all(v.truth in small for v in vs) and not alike:
            tally["extra"] += 1
    tally.update(small=sum(due.values()), missed=sum((due - got).values()), doubled=sum((got - due).values()))
    return tally
