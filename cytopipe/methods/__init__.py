"""The methods, by name. One table; a method's module is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from cytopipe.core.errors import UserError, nearest_fix
from cytopipe.methods.base import Method, MethodConfig, ParamGroup

METHODS = {
    "dual-alignment": "cytopipe.methods.dual_alignment:DualAlignment",
    "supervised": "cytopipe.methods.supervised:Supervised",
}

__all__ = ["METHODS", "Method", "MethodConfig", "ParamGroup", "find_method"]


def find_method(name: str) -> type[Method]:
    """The method's class. Raises UserError that names the nearest known method."""
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}", fix=nearest_fix(name, METHODS, "known methods"))
    module, _, kind = METHODS[name].partition(":")
    found: type[Method] = getattr(import_module(module), kind)
    return found
