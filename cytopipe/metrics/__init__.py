"""Measures of located objects: arrays in, numbers out. It knows no file, no slide and no network."""

from cytopipe.metrics.average_precision import (
    ANY_AREA,
    AP10_70_THRESHOLDS,
    AREA_RANGES,
    COCO_THRESHOLDS,
    APResult,
    Frame,
    average_precision,
)
from cytopipe.metrics.found import NOTHING_FOUND, Found, count_found
from cytopipe.metrics.matching import Pairs, match_by_score, match_one_to_one, overlapping_pairs

__all__ = [
    "ANY_AREA",
    "AP10_70_THRESHOLDS",
    "AREA_RANGES",
    "COCO_THRESHOLDS",
    "NOTHING_FOUND",
    "APResult",
    "Found",
    "Frame",
    "Pairs",
    "average_precision",
    "count_found",
    "match_by_score",
    "match_one_to_one",
    "overlapping_pairs",
]
