"""Measures of located objects and of class maps: arrays in, numbers out. It knows no file, slide or network."""

from cytopipe.metrics.aji import LEAST_SCORE, MOST_RESULTS, aji50_of, aji_of
from cytopipe.metrics.average_precision import (
    ANY_AREA,
    AP10_70_THRESHOLDS,
    AREA_RANGES,
    COCO_THRESHOLDS,
    APResult,
    Frame,
    average_precision,
)
from cytopipe.metrics.dice import PixelScores, class_scores, mean_scores, pixel_scores
from cytopipe.metrics.found import NOTHING_FOUND, Found, count_found
from cytopipe.metrics.mask_overlap import Masks, Overlap, masks_of, overlap
from cytopipe.metrics.matching import Pairs, match_by_score, match_one_to_one, overlapping_pairs
from cytopipe.metrics.panoptic import Panoptic, count_panoptic, pooled

__all__ = [
    "ANY_AREA",
    "AP10_70_THRESHOLDS",
    "AREA_RANGES",
    "COCO_THRESHOLDS",
    "LEAST_SCORE",
    "MOST_RESULTS",
    "NOTHING_FOUND",
    "APResult",
    "Found",
    "Frame",
    "Masks",
    "Overlap",
    "Pairs",
    "Panoptic",
    "PixelScores",
    "aji50_of",
    "aji_of",
    "average_precision",
    "class_scores",
    "count_found",
    "count_panoptic",
    "masks_of",
    "match_by_score",
    "match_one_to_one",
    "mean_scores",
    "overlap",
    "overlapping_pairs",
    "pixel_scores",
    "pooled",
]
