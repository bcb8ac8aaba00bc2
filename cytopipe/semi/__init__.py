"""What methods are made of: clock, ramps, weighted terms, views, the EMA teacher, projector, bank."""

from cytopipe.semi.clock import Clock
from cytopipe.semi.draw import DrawnView, apply_preset
from cytopipe.semi.ema import EmaRule, EmaTeacher
from cytopipe.semi.geometry import Geometry, compose, draw_geometry, warp_affine
from cytopipe.semi.mapping import map_boxes, map_features, map_masks, valid_both
from cytopipe.semi.presets import (
    CDCL_STRONG,
    CDCL_WEAK,
    JITTERED,
    MSPA,
    PRESETS,
    PSM,
    PSM_LABELLED,
    ROBUST,
    STRONG,
    WEAK,
    Erasing,
    Flips,
    ViewPlan,
    ViewPreset,
)
from cytopipe.semi.projector import Projector
from cytopipe.semi.ramps import Ramp
from cytopipe.semi.ring_bank import RingBank
from cytopipe.semi.signals import pseudo_label_signals, spread
from cytopipe.semi.views import IGNORE, Batch, Part, Targets, View
from cytopipe.semi.weighted import Weighted

__all__ = [
    "CDCL_STRONG",
    "CDCL_WEAK",
    "IGNORE",
    "JITTERED",
    "MSPA",
    "PRESETS",
    "PSM",
    "PSM_LABELLED",
    "ROBUST",
    "STRONG",
    "WEAK",
    "Batch",
    "Clock",
    "DrawnView",
    "EmaRule",
    "EmaTeacher",
    "Erasing",
    "Flips",
    "Geometry",
    "Part",
    "Projector",
    "Ramp",
    "RingBank",
    "Targets",
    "View",
    "ViewPlan",
    "ViewPreset",
    "Weighted",
    "apply_preset",
    "compose",
    "draw_geometry",
    "map_boxes",
    "map_features",
    "map_masks",
    "pseudo_label_signals",
    "spread",
    "valid_both",
    "warp_affine",
]
