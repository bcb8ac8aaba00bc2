"""The collapse detector (METHODS 1.9, DESIGN 9): says in plain words when a run goes wrong, and what to change.

Enters: the rows of the run's log, in order.  Leaves: sentences. It never alters training. Its state is a function of
the rows, so that a resumed run feeds it the log and goes on as if nothing had happened (`replay`).

Rules, over the last `window` iterations (500, or a fifth of a shorter run), judged every `every` iterations:

    not finite        a loss is NaN or infinite: at once; the engine stops
    vanishing         the mean count of pseudo-labels is below a tenth of its median before the window
    exploding         it is above ten times that median
    none              hardly an unlabelled image has a pseudo-label
    one class         one class has over 95 % of the pseudo-labels, under 80 % of what is labelled
    flat embeddings   their standard deviation is below 1e-3
    teacher below     the teacher validates far below the student, at two validations running

A sentence is said when its rule begins to hold, and again only after it had ceased to. All signals are also drawn in
the report. Counts are those of semi/signals.py: objects or, for semantic methods, pixels.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

WINDOW_ITERATIONS = 500  # METHODS 1.9
SHORT_RUN_FRACTION = 0.2  # [D] a run of under 2500 iterations is judged over a fifth of it, else it ends unjudged
VANISHED, EXPLODED = 0.1, 10.0  # of the median; METHODS 1.9
LEAST_MEDIAN = 1.0  # [D] one pseudo-label an image: ten times less than that is no explosion, only a beginning
MOST_OF_LABELLED = 2.0  # [D] nor is a count below twice what a labelled image holds: there is that much to find
NONE_FRACTION = 0.95  # [D] of images without a pseudo-label: the rest teaches nothing
ONE_CLASS, LABELLED_CLASS = 0.95, 0.8  # METHODS 1.9
FLAT_STD = 1e-3  # METHODS 1.9
TEACHER_SHARE, TEACHER_GAP = 0.8, 0.05  # [D] of the student's metric, and at least 5 points of it
TEACHER_VALIDATIONS = 2  # [D] running: a young average lags behind a student that learns fast


@dataclass(frozen=True, slots=True)
class CollapseSettings:
    """When the detector judges, and by what.

    iterations  T of the run
    metric      the validation metric by which teacher and student are compared
    every       iterations between judgements (`train.monitor_every`)
    start       iteration at which the teacher begins to follow (burn-in); validations up to it are not compared
    images      labelled images of a step: turns counts of labelled objects into counts an image
    config      the method's settings, so that a sentence names the one to change and its value
    """

    iterations: int
    metric: str
    every: int = 50
    start: int = 0
    images: int = 1
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def window(self) -> int:
        """Iterations over which is judged."""
        return max(2 * self.every, min(WINDOW_ITERATIONS, round(self.iterations * SHORT_RUN_FRACTION)))


class CollapseDetector:
    """Give it every row by `look`, in order."""

    def __init__(self, settings: CollapseSettings) -> None:
        self.settings = settings
        self._recent: deque[tuple[int, Mapping[str, float]]] = deque()  # (t, signals) of the window
        self._before: list[float] = []  # pseudo-labels an image, of all rows before the window
        self._first: int | None = None  # iteration of the first signals
        self._last = -1  # iteration of the last judgement
        self._holding: set[str] = set()  # rules that hold and were said
        self._below = 0  # validations running with the teacher far below

    def look(
        self,
        t: int,
        losses: Mapping[str, float],
        signals: Mapping[str, float],
        val: Mapping[str, Mapping[str, float]] | None = None,
    ) -> list[str]:
        """What is to be said after iteration t; usually nothing.

        losses   by name, of this iteration; empty with a validation
        signals  of semi/signals.py, of this iteration; empty where the method read no unlabelled image
        val      network ("student", "teacher") -> metric -> value, at a validation; else None
        """
        held = {"not finite": not_finite(t, losses)}
        if val is not None:
            held["teacher below"] = self._teacher_below(t, val)
        if "pseudo_labels_per_image" in signals or "embedding_std" in signals:
            self._take(t, signals)
            if self._is_due(t):
                held |= self._judged(t)
        return self._newly(held)

    def replay(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take in the rows of a log (train/log.py) without saying anything: before a resumed run goes on."""
        for row in rows:
            self.look(row["t"], row.get("losses", {}), row.get("signals", {}), row.get("val"))

    def _newly(self, held: Mapping[str, str]) -> list[str]:
        """The sentences of the rules that hold now and did not before; '' is a rule that does not hold."""
        new = [text for rule, text in held.items() if text and rule not in self._holding]
        self._holding |= {rule for rule, text in held.items() if text}
        self._holding -= {rule for rule, text in held.items() if not text}
        return new

    def _take(self, t: int, signals: Mapping[str, float]) -> None:
        self._first = t if self._first is None else self._first
        self._recent.append((t, signals))
        while self._recent[0][0] <= t - self.settings.window:
            _, old = self._recent.popleft()
            if "pseudo_labels_per_image" in old:
                self._before.append(old["pseudo_labels_per_image"])

    def _is_due(self, t: int) -> bool:
        """Whether the window is full, and `every` iterations have passed. Signals may be logged more rarely."""
        full = self._first is not None and t - self._first + self.settings.every >= self.settings.window
        return full and t - self._last >= self.settings.every

    def _judged(self, t: int) -> dict[str, str]:
        self._last = t
        over = f"over the last {self.settings.window} iterations (to iteration {t})"
        return {
            **self._counts_judged(over),
            "one class": self._one_class(over),
            "flat embeddings": self._flat(over),
        }

    def _counts_judged(self, over: str) -> dict[str, str]:
        counts = self._series("pseudo_labels_per_image")
        if not counts:
            return {}
        mean, without = fmean(counts), self._series("images_without_pseudo_label_fraction")
        threshold = self._bar()
        held = {"vanishing": "", "exploding": "", "none": ""}
        if without and fmean(without) >= NONE_FRACTION:
            held["none"] = (
                f"{fmean(without):.0%} of the unlabelled images had no pseudo-label {over}: nothing is learned from "
                f"them; lower {threshold}, or lengthen the burn-in until the network finds objects by itself"
            )
        if not self._before:
            return held
        usual = median(self._before)
        if mean < VANISHED * usual:
            held["vanishing"] = (
                f"pseudo-labels vanish: {mean:.3g} an image {over}, against {usual:.3g} before; lower {threshold} or "
                "train.lr, and see whether the teacher's metric fell at the same time"
            )
        labelled = sum(self._histogram("labelled").values()) / (len(self._recent) * self.settings.images)
        if mean > max(EXPLODED * max(usual, LEAST_MEDIAN), MOST_OF_LABELLED * labelled):
            held["exploding"] = (
                f"pseudo-labels explode: {mean:.3g} an image {over}, against {usual:.3g} before; raise {threshold}, "
                f"or lower {self._weight()}"
            )
        return held

    def _one_class(self, over: str) -> str:
        pseudo, labelled = self._histogram("pseudo_labels"), self._histogram("labelled")
        total = sum(pseudo.values())
        if len(pseudo) < 2 or total <= 0:
            return ""
        name, count = max(pseudo.items(), key=lambda item: item[1])
        annotated = sum(labelled.values())
        usual = labelled.get(name, 0.0) / annotated if annotated else 0.0
        if count / total <= ONE_CLASS or usual >= LABELLED_CLASS:
            return ""
        return (
            f"{count / total:.0%} of the pseudo-labels {over} are {name!r}, which is {usual:.0%} of what is labelled "
            f"({_divergence(pseudo, labelled)}); raise {self._bar()}, lower "
            f"{self._weight()}, or label more of the other classes"
        )

    def _flat(self, over: str) -> str:
        values = self._series("embedding_std")
        if not values or fmean(values) >= FLAT_STD:
            return ""
        return (
            f"the embeddings hardly differ: standard deviation {fmean(values):.1e} {over}; lower "
            f"{self._weight()} or the learning rate of the projector, or raise the margin or "
            "temperature that keeps classes apart"
        )

    def _teacher_below(self, t: int, val: Mapping[str, Mapping[str, float]]) -> str:
        if t <= self.settings.start or "teacher" not in val or "student" not in val:
            return ""
        # a metric that is missing has nothing to compare with: no true object, or nothing found
        student, teacher = (val[name].get(self.settings.metric, 0.0) for name in ("student", "teacher"))
        far = teacher < TEACHER_SHARE * student and student - teacher > TEACHER_GAP
        self._below = self._below + 1 if far else 0
        if self._below < TEACHER_VALIDATIONS:
            return ""
        return (
            f"the teacher is far below the student: {self.settings.metric} {teacher:.3f} against {student:.3f} at "
            f"iteration {t}, for {self._below} validations; lower {self._setting('alpha', 'its EMA decay')}, so that "
            "it follows faster, or see whether batch norm statistics reach it: a teacher that lags teaches old mistakes"
        )

    def _series(self, name: str) -> list[float]:
        return [signals[name] for _, signals in self._recent if name in signals]

    def _histogram(self, kind: str) -> dict[str, float]:
        """class -> count over the window, of the signals `kind[CLASS]`."""
        counts: dict[str, float] = {}
        for _, signals in self._recent:
            for name, value in signals.items():
                if name.startswith(f"{kind}[") and name.endswith("]"):
                    key = name[len(kind) + 1 : -1]
                    counts[key] = counts.get(key, 0.0) + value
        return counts

    def _bar(self) -> str:
        return self._setting("threshold", "the method's bar for pseudo-labels")

    def _weight(self) -> str:
        return self._setting("unsup_weight", "the weight of the unsupervised terms")

    def _setting(self, word: str, otherwise: str) -> str:
        """The method's settings of that name, with their values; in other words where it has none."""
        named = [
            f"train.config.{key}" + ("" if value is None else f" (now {value:g})")
            for key, value in self.settings.config.items()
            if word in key.split("_") or word == key
            if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        ]
        return " or ".join(named) or otherwise


def not_finite(t: int, losses: Mapping[str, float]) -> str:
    """What is to be said of losses of which one is NaN or infinite; '' where all are finite."""
    bad = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
    if not bad:
        return ""
    return (
        f"the loss is not finite at iteration {t} ({', '.join(bad)}): lower train.lr, give train.grad_clip_norm or "
        "train.warmup_iterations, or train with train.amp=off, with another --out or --overwrite; the last good "
        "checkpoint is kept"
    )


def _divergence(pseudo: Mapping[str, float], labelled: Mapping[str, float]) -> str:
    """KL of the two histograms, in words; one count is added to each class, since a class may be absent."""
    p, q = ({name: side.get(name, 0.0) + 1.0 for name in pseudo} for side in (pseudo, labelled))
    total_p, total_q = sum(p.values()), sum(q.values())
    value = math.fsum(p[name] / total_p * math.log((p[name] / total_p) / (q[name] / total_q)) for name in pseudo)
    return f"KL divergence {value:.2f}"
