"""What methods are made of: clock, ramps, weighted terms, views, the EMA teacher, projector, bank."""

from cytopipe.semi.clock import Clock
from cytopipe.semi.draw import DrawnView, apply_preset
from cytopipe.semi.ema import EmaRule, EmaTeacher
from cytopipe.semi.geometry import Geometry, affine_between, draw_geometry, map_boxes, map_masks
from cytopipe.semi.presets import JITTERED, ROBUST, STRONG, WEAK, Erasing, Flips, ViewPlan, ViewPreset
from cytopipe.semi.projector import Projector
from cytopipe.semi.ramps import Ramp
from cytopipe.semi.ring_bank import RingBank
from cytopipe.semi.signals import pseudo_label_signals, spread
from cytopipe.semi.views import Batch, Part, Targets, View
from cytopipe.semi.weighted import Weighted

__all__ = [
    "JITTERED",
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
    "affine_between",
    "apply_preset",
    "draw_geometry",
    "map_boxes",
    "map_masks",
    "pseudo_label_signals",
    "spread",
]
