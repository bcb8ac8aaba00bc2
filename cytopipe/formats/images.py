"""Which image of a file that holds several is meant: the one rule for COCO and CSV.

A name fits, in this order: as the file spells it; without its suffix; without its folders; without both; as an id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from cytopipe.core.errors import UserError, nearest_fix

_SHOWN = 5  # names in an error
_NEAREST_OF = 20  # names among which the nearest is looked for, and which an error may list


def chosen_image(
    names: Sequence[str], wanted: str | None, where: str, *, only_named: bool = False, ids: Sequence[str] = ()
) -> int:
    """The index of the image that `wanted` names.

    wanted      None: the only one; a single image needs no name
    only_named  a single image must be named all the same
    ids         of the images, as text, where the file has such
    Raises UserError when none or several fit.
    """
    if not names:
        raise UserError("holds no image", where=where)
    if wanted is not None:
        for way in (*_WAYS, None):
            known = ids if way is None else [way(name) for name in names]
            found = [k for k, name in enumerate(known) if name == wanted]
            if len(found) > 1:
                spelled = ", ".join(names[k] for k in found[:_SHOWN])
                raise UserError(f"holds {len(found)} images called {wanted!r}: {spelled}", where=where)
            if found:
                return found[0]
    if len(names) == 1 and not (only_named and wanted is not None):
        return 0
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    if wanted is None:
        raise UserError(f"holds {len(names)} images: {shown}", where=where, fix="give --image NAME")
    stems = [_stem(name) for name in names]
    raise UserError(
        f"holds no image {wanted!r}", where=where, fix=nearest_fix(wanted, stems[:_NEAREST_OF], "its images")
    )


def _stem(name: str) -> str:
    return PurePosixPath(_base(name)).stem


def _base(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name


def _without_suffix(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).name else name


_WAYS: tuple[Callable[[str], str], ...] = (str, _without_suffix, _base, _stem)
