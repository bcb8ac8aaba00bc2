"""How well located objects agree with what somebody annotated: reading both sides, and the tables.

It measures with `metrics`; it knows files and classes, which `metrics` does not.
"""

from cytopipe.evaluate.area import INSIDE, ON_BORDER, OUTSIDE, closed_union, placed
from cytopipe.evaluate.located import Located, read_located
from cytopipe.evaluate.tables import Evaluation, Row, SlideCounts, evaluate_slides
from cytopipe.evaluate.truth import Truth, TruthFiles, TruthStore, open_truth

__all__ = [
    "INSIDE",
    "ON_BORDER",
    "OUTSIDE",
    "Evaluation",
    "Located",
    "Row",
    "SlideCounts",
    "Truth",
    "TruthFiles",
    "TruthStore",
    "closed_union",
    "evaluate_slides",
    "open_truth",
    "placed",
    "read_located",
]
