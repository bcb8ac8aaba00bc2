"""The methods, by name. One table; a method's module is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from cytopipe.core.errors import UserError, nearest_fix
from cytopipe.methods.base import Method, MethodConfig, ParamGroup, PseudoLabels

_REGISTERED = {
    "supervised": "cytopipe.methods.supervised:Supervised",
    "mean-teacher": "cytopipe.methods.mean_teacher:MeanTeacher",
    "dual-alignment": "cytopipe.methods.dual_alignment:DualAlignment",
    "mmt-psm": "cytopipe.methods.mmt_psm:MmtPsm",
    "cdcl": "cytopipe.methods.cdcl:Cdcl",
    "mspa": "cytopipe.methods.mspa:Mspa",
    "crossmatch": "cytopipe.methods.crossmatch:CrossMatch",
}
METHODS = {name: path for name, path in _REGISTERED.items() if find_spec(path.partition(":")[0]) is not None}

__all__ = ["METHODS", "Method", "MethodConfig", "ParamGroup", "PseudoLabels", "find_method", "methods_for"]


def find_method(name: str) -> type[Method]:
    """The method's class. Raises UserError that names the nearest known method."""
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}", fix=nearest_fix(name, METHODS, "known methods"))
    module, _, kind = METHODS[name].partition(":")
    found: type[Method] = getattr(import_module(module), kind)
    return found


def methods_for(task: str) -> list[str]:
    """Names of the methods that train a task, in the order of the table."""
    return [name for name in METHODS if task in find_method(name).tasks]
