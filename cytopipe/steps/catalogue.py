"""What can be chosen by name: the methods table and the shipped model bundles, as values to list."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from pathlib import Path

CARD_NAME = "CARD.md"


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of a method's Config; `meaning` is the sentence of its owner, with the unit."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True, slots=True)
class MethodFacts:
    """A method as the listing shows it; `text` and `settings` are filled by `show_method`."""

    name: str
    status: str
    tasks: tuple[str, ...]
    uses_unlabelled: bool
    paper: str
    text: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A bundle as the listing shows it; `card` is the text of its CARD.md, empty where there is none."""

    name: str
    task: str
    mpp: float
    size_mb: float
    classes: tuple[str, ...]
    folder: Path
    sha256: str
    card: str


def list_methods() -> list[MethodFacts]:
    """All methods, in the order of the methods table."""
    from cytopipe.methods import METHODS

    return [_method_facts(name) for name in METHODS]


def show_method(name: str) -> MethodFacts:
    """One method with its description and its settings. Raises UserError for an unknown name, naming the nearest."""
    from cytopipe.methods import find_method

    method = find_method(name)
    text = tuple((inspect.getdoc(sys.modules[method.__module__]) or "").splitlines())
    settings = tuple(
        Setting(
            key,
            "required" if field.is_required() else str(field.get_default(call_default_factory=True)),
            field.description or "",
        )
        for key, field in method.Config.model_fields.items()
    )
    facts = _method_facts(name)
    return MethodFacts(facts.name, facts.status, facts.tasks, facts.uses_unlabelled, facts.paper, text, settings)


def list_models() -> list[ModelFacts]:
    """The shipped bundles, by name."""
    from cytopipe.nets import list_bundles

    return [_model_facts(name) for name in list_bundles()]


def show_model(name: str) -> ModelFacts:
    """One bundle, shipped or in a folder. Raises UserError for an unknown name, naming the nearest."""
    return _model_facts(name)


def _method_facts(name: str) -> MethodFacts:
    from cytopipe.methods import find_method

    method = find_method(name)
    return MethodFacts(method.name, method.status, tuple(sorted(method.tasks)), method.uses_unlabelled, method.paper)


def _model_facts(name: str) -> ModelFacts:
    from cytopipe.nets import load_bundle

    bundle = load_bundle(name)
    folder = bundle.folder
    card = folder / CARD_NAME
    return ModelFacts(
        name=bundle.spec.name,
        task=bundle.spec.net.task,
        mpp=bundle.spec.mpp,
        size_mb=round(sum(p.stat().st_size for p in folder.glob("*.safetensors")) / 1e6, 1),
        classes=tuple(c.name for c in bundle.spec.net.classes),
        folder=folder,
        sha256=bundle.spec.weights_sha256,
        card=card.read_text(encoding="utf-8") if card.is_file() else "",
    )
