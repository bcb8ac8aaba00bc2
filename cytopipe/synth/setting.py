"""Other slides than the tidy one: dark field, weak stain, thick smears, blood, bad light, marks on the glass.

Enters: a setting's name and the slide's seed.  Leaves: how the scene, the stain and the lamp depart from `light`, the
default, whose slides are drawn exactly as if there were no settings. A setting draws from random streams of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import numpy as np

from cytopipe.core.seeds import rng_from
from cytopipe.synth.stain import F32, Stain

SettingName = Literal["light", "dark", "pale", "thick", "bloody", "badly-lit", "marks"]
SETTING_NAMES: tuple[str, ...] = get_args(SettingName)

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Setting:
    """How slides of a setting depart from the default. Ranges are uniform, drawn once a slide; all numbers [D], set so
    that each is worse than what a laboratory would send back.

    nuclei, cytoplasm   factors of the dyes
    emits               cells shine on a dark ground (fluorescence) instead of absorbing
    crowding            factor of the density of cells
    piled               normal cells lie in piles of many layers
    red_cells_per_mm2   mean number of red cells
    film                optical density of dried serum where it is thickest, at its own dye 1
    glass               factor of the lamp's brightness; `cast` is how far the channels part
    vignette            how much darker (optical density) the middle of a field's border is than the field's middle
    unevenness, noise   factors of the lamp's waves over the slide, and of the camera's noise
    marked              pen strokes, edges of the slide, lines of the cover glass, and a frame that was never scanned
    """

    nuclei: Range = (1.0, 1.0)
    cytoplasm: Range = (1.0, 1.0)
    emits: bool = False
    crowding: float = 1.0
    piled: bool = False
    red_cells_per_mm2: float = 0.0
    film: Range = (0.0, 0.0)
    glass: Range = (1.0, 1.0)
    cast: float = 0.0
    vignette: Range = (0.0, 0.0)
    unevenness: float = 1.0
    noise: Range = (1.0, 1.0)
    marked: bool = False


SETTINGS: dict[str, Setting] = {
    "light": Setting(),
    "dark": Setting(emits=True),
    "pale": Setting(nuclei=(0.3, 0.5), cytoplasm=(0.15, 0.35)),
    "thick": Setting(nuclei=(1.0, 1.3), cytoplasm=(1.2, 1.7), crowding=3.0, piled=True),
    "bloody": Setting(red_cells_per_mm2=900.0, film=(0.15, 0.5)),
    "badly-lit": Setting(glass=(0.62, 0.85), cast=0.12, vignette=(0.08, 0.2), unevenness=4.0, noise=(1.5, 2.2)),
    "marks": Setting(marked=True),
}

# What shines, in units of `glass`: nuclei by a blue DNA dye, the rest by its own faint green and red.
EMISSION = {
    "haematoxylin": (0.02, 0.08, 0.42),
    "eosin": (0.07, 0.055, 0.02),
    "orange": (0.06, 0.07, 0.01),
    "light_green": (0.01, 0.08, 0.055),
    "violet": (0.03, 0.06, 0.07),
    "mucus": (0.008, 0.03, 0.015),
}
EMPTY_GREY = (4.0, 18.0)  # of a dark slide


def stained(stain: Stain, name: str, seed: int) -> Stain:
    """The stain and the light of a slide in a setting; `light` leaves both as they are."""
    setting = SETTINGS[name]
    if setting == SETTINGS["light"]:
        return stain
    rng = rng_from(seed, "setting", name)
    cytoplasm = np.float32(rng.uniform(*setting.cytoplasm))
    dyes: dict[str, F32] = {}
    for field in fields(Stain):
        if field.name in EMISSION:
            dye = np.array(EMISSION[field.name], np.float32) if setting.emits else getattr(stain, field.name)
            dyes[field.name] = dye * (np.float32(1) if field.name == "haematoxylin" else cytoplasm)
    dyes["haematoxylin"] = dyes["haematoxylin"] * np.float32(rng.uniform(*setting.nuclei))
    glass = stain.glass * np.float32(rng.uniform(*setting.glass)) * (1 + setting.cast * rng.uniform(-1, 1, 3))
    return replace(
        stain,
        **dyes,
        glass=np.clip(glass, 0, 250).astype(np.float32),
        light=np.concatenate([stain.light[:1] * setting.unevenness, stain.light[1:]]),
        noise_std=stain.noise_std * float(rng.uniform(*setting.noise)),
        vignette=float(rng.uniform(*setting.vignette)),
        film=float(rng.uniform(*setting.film)),
        empty_grey=float(rng.uniform(*EMPTY_GREY)) if setting.emits else None,
    )
