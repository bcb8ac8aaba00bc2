"""cytopipe: from whole-slide cytology to located cells.

The Python API is the verbs of the commands; each is imported when it is first used, so that `import cytopipe` stays
light.
`cytopipe.train`, `cytopipe.infer` and `cytopipe.evaluate` are verbs, too: the rooms of the same names are reached by
`from cytopipe.infer import …`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from cytopipe._version import __version__

_API = {
    "open_slide": "cytopipe.slides",
    "synth": "cytopipe.steps.synth",
    "tile": "cytopipe.steps.tile",
    "mine_unlabeled": "cytopipe.steps.mine",
    "train": "cytopipe.steps.train",
    "infer": "cytopipe.steps.infer",
    "evaluate": "cytopipe.steps.evaluate",
    "convert": "cytopipe.steps.convert",
    "stitch": "cytopipe.steps.stitch",
}

__all__ = [
    "__version__",
    "convert",
    "evaluate",
    "infer",
    "mine_unlabeled",
    "open_slide",
    "stitch",
    "synth",
    "tile",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _API:
        return getattr(import_module(_API[name]), name)
    raise AttributeError(f"module 'cytopipe' has no attribute {name!r}")


class _Package(ModuleType):
    """Importing a room sets it as an attribute of its package, which would hide the verb of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _API and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
