"""The synthetic slide and its truth: a Pap-like smear as a function of a seed.

`Scene` says what lies where, `Renderer` draws it band by band, `annotations_of` tells its truth. It imitates what a
detector has to cope with (overlap, folds, mimics, debris, defocus, ink, stain); it is no substitute for a real
slide, and nothing measured on it says how a method does on patients.
"""

from cytopipe.synth.render import Renderer
from cytopipe.synth.scene import Scene
from cytopipe.synth.setting import SETTING_NAMES
from cytopipe.synth.truth import annotations_of

__all__ = ["SETTING_NAMES", "Renderer", "Scene", "annotations_of"]
