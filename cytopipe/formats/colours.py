"""The colour of each class, the same in QuPath files, pages and pictures.

Enters: class names.  Leaves: (r, g, b), 0 to 255. The hues of known classes go from calm to alarming and stay apart
under the common colour deficiencies and on pink and blue-green stains (after Okabe and Ito, 2008).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

Colour = tuple[int, int, int]

KNOWN: dict[str, Colour] = {
    "nucleus": (0, 96, 176),
    "nuclei": (0, 96, 176),
    "cell": (0, 128, 128),
    "normal": (0, 145, 105),
    "nilm": (0, 145, 105),
    "asc-us": (224, 148, 0),
    "asc-h": (190, 70, 0),
    "lsil": (222, 92, 16),
    "hsil": (204, 0, 60),
    "scc": (122, 0, 25),
    "agc": (148, 72, 190),
    "ais": (96, 30, 140),
    "adenocarcinoma": (70, 16, 96),
}

OTHERS: tuple[Colour, ...] = (
    (31, 119, 180),
    (196, 110, 20),
    (44, 140, 60),
    (190, 40, 60),
    (128, 90, 180),
    (130, 84, 70),
    (200, 80, 150),
    (90, 100, 110),
    (140, 140, 20),
    (20, 150, 170),
)


def colour_of(class_name: str) -> Colour:
    """The colour of one class by its name alone; names we do not know get one of ten, by their hash."""
    return KNOWN.get(class_name.lower()) or OTHERS[_slot(class_name)]


def class_colours(class_names: Iterable[str]) -> dict[str, Colour]:
    """Colours for a class list: as `colour_of`, but unknown names of one list share a colour only past ten of them."""
    colours: dict[str, Colour] = {}
    taken: set[int] = set()
    for name in class_names:
        known = KNOWN.get(name.lower())
        if known is not None:
            colours[name] = known
            continue
        first = _slot(name)
        slot = next((s for k in range(len(OTHERS)) if (s := (first + k) % len(OTHERS)) not in taken), first)
        taken.add(slot)
        colours[name] = OTHERS[slot]
    return colours


def hex_of(colour: Colour) -> str:
    """The colour as CSS writes it: '#0060b0'."""
    return "#" + bytes(colour).hex()


def _slot(name: str) -> int:
    return hashlib.blake2b(name.encode(), digest_size=4).digest()[0] % len(OTHERS)
