"""How many µm a pixel is, decided from evidence in a fixed order, and what was not believed.

Order (DESIGN 3): the user's override; the vendor's own field; TIFF resolution tags that are plausible; the objective
power, marked as guessed. Enters: what a reader found.  Leaves: a Resolution or None, and a sentence for each oddity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cytopipe.core.errors import UserError
from cytopipe.slides.slide import Resolution

PLAUSIBLE_MPP = (0.05, 5.0)
"""TIFF tags outside are not believed, µm/px (DESIGN 3): 72 dpi is 352.8 µm/px, the default of every image editor."""

OBJECTIVE_UM = 10.0
"""mpp = 10 / objective power: 0.5 at 20x, 0.25 at 40x, as Aperio and Hamamatsu scanners have within about 10% [D]."""

ANISOTROPIC_FRACTION = 0.01
"""Sides of a pixel that differ by more are reported [D]: a scanner's stage is calibrated better than that."""

UM_PER_TAG_UNIT = {2: 25_400.0, 3: 10_000.0}
"""TIFF 6.0, ResolutionUnit: 2 inch, 3 centimetre; 1 is no unit at all."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a file says about its resolution: µm/px pairs (x, y) with the name of the vendor's field, tags as µm/px,
    objective power; and `missing`, a sentence for the case that none of it is there."""

    vendor: tuple[float, float] | None = None
    vendor_field: str = ""
    tags: tuple[float, float] | None = None
    objective: float | None = None
    missing: str = ""


def settle_resolution(evidence: Evidence, mpp_override: float | None) -> tuple[Resolution | None, tuple[str, ...]]:
    """The first evidence that holds, and notes on what was not believed. Raises UserError for an override that is no
    positive number."""
    if mpp_override is not None:
        if not _is_positive(mpp_override):
            raise UserError(f"mpp {mpp_override:g}", fix="give µm per pixel as a positive number, such as 0.25")
        return Resolution(mpp_override, mpp_override, "override", guessed=False), ()
    notes: list[str] = []
    chosen: Resolution | None = None
    if evidence.vendor is not None:
        if all(_is_positive(value) for value in evidence.vendor):
            chosen = Resolution(*evidence.vendor, f"vendor field {evidence.vendor_field}", guessed=False)
        else:
            notes.append(
                f"{evidence.vendor_field} says {_pair(evidence.vendor)} µm/px, which is no resolution; not used"
            )
    if chosen is None and evidence.tags is not None:
        if all(PLAUSIBLE_MPP[0] <= value <= PLAUSIBLE_MPP[1] for value in evidence.tags):
            chosen = Resolution(*evidence.tags, "TIFF resolution tags", guessed=False)
        else:
            low, high = PLAUSIBLE_MPP
            notes.append(f"resolution tags say {_pair(evidence.tags)} µm/px, outside {low:g} to {high:g}; not believed")
    if chosen is None and evidence.objective is not None and _is_positive(evidence.objective):
        guess = OBJECTIVE_UM / evidence.objective
        chosen = Resolution(guess, guess, f"objective power {evidence.objective:g}", guessed=True)
    if chosen is None and not notes and evidence.missing:
        notes.append(evidence.missing)
    if chosen is not None and abs(chosen.mpp_x - chosen.mpp_y) > ANISOTROPIC_FRACTION * chosen.mpp:
        notes.append(f"pixels are not square: {_pair((chosen.mpp_x, chosen.mpp_y))} µm/px")
    return chosen, tuple(notes)


def mpp_from_tags(x_per_unit: float, y_per_unit: float, unit: int) -> tuple[float, float] | None:
    """µm/px (x, y) from TIFF XResolution, YResolution and ResolutionUnit; None without a unit of length or a positive
    number."""
    if unit not in UM_PER_TAG_UNIT or not (_is_positive(x_per_unit) and _is_positive(y_per_unit)):
        return None
    return UM_PER_TAG_UNIT[unit] / x_per_unit, UM_PER_TAG_UNIT[unit] / y_per_unit


def number_or_none(text: str | None) -> float | None:
    """A finite number from a metadata field, or None: vendors write 'unknown', '' and '0,5' there."""
    if text is None:
        return None
    try:
        value = float(text.strip())
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _is_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _pair(values: tuple[float, float]) -> str:
    return f"{values[0]:.4g}" if values[0] == values[1] else f"{values[0]:.4g} x {values[1]:.4g}"
