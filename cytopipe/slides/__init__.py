"""The room of slides: opening, resolution evidence, reading at a target mpp, foreground, focus, slide lists."""

from cytopipe.slides.entries import SlideEntry, list_slides
from cytopipe.slides.focus import glass_fraction, sharpness
from cytopipe.slides.foreground import Foreground, find_foreground
from cytopipe.slides.open import open_slide, require_mpp
from cytopipe.slides.slide import Level, Resolution, Slide
from cytopipe.slides.thumbnail import thumbnail
from cytopipe.slides.view import MppView

__all__ = [
    "Foreground",
    "Level",
    "MppView",
    "Resolution",
    "Slide",
    "SlideEntry",
    "find_foreground",
    "glass_fraction",
    "list_slides",
    "open_slide",
    "require_mpp",
    "sharpness",
    "thumbnail",
]
