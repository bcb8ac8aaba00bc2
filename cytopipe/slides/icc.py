"""An embedded colour profile applied: pixels of the scanner's colours in, sRGB out, each pixel by itself.

Rendering intent [D]: relative colorimetric. White of the profile becomes white, and what sRGB can show keeps its
measured colour; the perceptual table is each vendor's taste, and scanner profiles of matrix form have none.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

from cytopipe.core.errors import UserError
from cytopipe.slides.slide import U8

PROFILE_ERRORS = (ImageCms.PyCMSError, OSError, ValueError, TypeError)
"""What Pillow raises on a damaged profile, or on one that has no way to the colours asked for."""


class ToSrgb:
    """A colour transform; it may be used by several threads at once. Raises UserError for a profile that is damaged or
    describes no RGB."""

    def __init__(self, profile: bytes, name: str) -> None:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = source.profile.xcolor_space.strip()
            if space != "RGB":
                raise UserError(f"its ICC profile describes {space} and no RGB", where=name, fix="leave --icc off")
            self._transform = ImageCms.buildTransform(
                source,
                ImageCms.createProfile("sRGB"),
                "RGB",
                "RGB",
                ImageCms.Intent.RELATIVE_COLORIMETRIC,
                # Without it a transform remembers its last pixel, and threads would share that memory.
                ImageCms.Flags.NOCACHE,
            )
        except PROFILE_ERRORS as error:
            raise UserError(f"its ICC profile is damaged ({error})", where=name, fix="leave --icc off") from error

    def apply(self, rgb: U8) -> U8:
        """RGB (h, w, 3) in the profile's colours -> sRGB, same shape; the same pixel always gives the same pixel."""
        shown = ImageCms.applyTransform(Image.fromarray(np.ascontiguousarray(rgb)), self._transform)
        return np.array(shown, dtype=np.uint8)
