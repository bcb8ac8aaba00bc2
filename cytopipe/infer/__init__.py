"""Inference (DESIGN 6): the windows of a slide, what a network sees in each, and the rule that makes one table of it.

Everything named here is numpy and shapely. `cytopipe.infer.predict`, which runs the network, is imported by its own
name, since it needs torch.
"""

from cytopipe.infer.frames import scale_objects
from cytopipe.infer.masks import polygons_from_roi_masks
from cytopipe.infer.measure import measure
from cytopipe.infer.placed import PlacedWindows
from cytopipe.infer.stitching import Stitcher, Views, no_views, stitch
from cytopipe.infer.windows import GUARD_PX, Windows, WindowSet, default_overlap_px, plan_windows

__all__ = [
    "GUARD_PX",
    "PlacedWindows",
    "Stitcher",
    "Views",
    "WindowSet",
    "Windows",
    "default_overlap_px",
    "measure",
    "no_views",
    "plan_windows",
    "polygons_from_roi_masks",
    "scale_objects",
    "stitch",
]
