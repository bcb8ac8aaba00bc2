"""The room of slides: opening, resolution evidence, reading at a target mpp, foreground, focus, slide lists."""

from cytopipe.slides.entries import SlideEntry, list_slides
from cytopipe.slides.focus import glass_fraction, sharpness, sharpness_and_glass
from cytopipe.slides.foreground import Foreground, find_foreground
from cytopipe.slides.open import open_slide, require_mpp
from cytopipe.slides.showing import AS_STORED, Showing, showing_of
from cytopipe.slides.slide import Level, Resolution, Slide
from cytopipe.slides.thumbnail import thumbnail
from cytopipe.slides.view import MppView

__all__ = [
    "AS_STORED",
    "Foreground",
    "Level",
    "MppView",
    "Resolution",
    "Showing",
    "Slide",
    "SlideEntry",
    "find_foreground",
    "glass_fraction",
    "list_slides",
    "open_slide",
    "require_mpp",
    "sharpness",
    "sharpness_and_glass",
    "showing_of",
    "thumbnail",
]
