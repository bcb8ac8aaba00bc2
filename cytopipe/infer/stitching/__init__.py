"""The stitching rule of DESIGN 6: one table of objects from what overlapping windows report.

Geometry alone: it knows nothing of networks, files or the meaning of a class.
"""

from cytopipe.infer.stitching.overlap import SAME_IOU
from cytopipe.infer.stitching.stitcher import Stitcher, stitch
from cytopipe.infer.stitching.views import Views, no_views

__all__ = ["SAME_IOU", "Stitcher", "Views", "no_views", "stitch"]
