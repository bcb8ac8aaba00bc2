"""Reading a recipe and settling every value: flag before `--set` before recipe before default, and which it was.

Enters: a recipe's name or file, `--set KEY=VALUE` texts, values of flags.  Leaves: a checked `Recipe`, and the source
of each key. Keys are dotted: `train.lr`, `train.config.margin`.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from cytopipe.core.errors import UserError, nearest_fix, refuse_unknown
from cytopipe.core.resources import shipped
from cytopipe.recipes.schema import Recipe

METHOD_CONFIG = "train.config"  # the one table whose keys are not the schema's: the method's Config owns them

Table = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A recipe with every value settled.

    sources  dotted key -> "flag", "--set", "recipe NAME" or "default"; a key a field, lists and free tables whole
    """

    name: str
    recipe: Recipe
    sources: dict[str, str]

    def as_json(self) -> Table:
        """What is saved beside a result."""
        return {"name": self.name, "hash": recipe_hash(self.recipe), "recipe": self.recipe.model_dump(mode="json")} | {
            "sources": self.sources
        }


def list_recipes() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in shipped("pipelines").glob("*.toml"))


def load_recipe(
    name_or_path: str | Path | None, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> Resolved:
    """Settle a recipe.

    name_or_path  a shipped recipe, or a TOML file; None: the defaults
    overrides     texts KEY=VALUE, VALUE as in TOML; what is no TOML value is text
    flags         dotted key -> value; None: the flag was not given
    Raises UserError for an unknown recipe or key (naming the nearest), a value of the wrong kind or out of range, and a
    `[train.config]` that is not the method's.
    """
    name, table = ("defaults", {}) if name_or_path is None else _read(name_or_path)
    layers = [
        (f"recipe {name}", name, table),
        ("--set", "--set", _nested(dict(_parsed(text) for text in overrides))),
        ("flag", "flags", _nested({key: value for key, value in (flags or {}).items() if value is not None})),
    ]
    merged: Table = {}
    sources: dict[str, str] = dict.fromkeys(_leaves(Recipe), "default")
    for source, where, layer in layers:
        _refuse_unknown_keys(layer, Recipe, "", where)
        _merge(merged, layer)
        sources |= dict.fromkeys(_given(layer, Recipe, ""), source)
    recipe = _validated(Recipe, merged, "", name)
    if recipe.train.config:
        _check_method(recipe, name)
    return Resolved(name, recipe, sources)


def recipe_hash(recipe: Recipe) -> str:
    """12 hex digits of what decides results: every value but the paper's figures and the prose."""
    values = recipe.model_dump(mode="json", exclude={"expected", "title", "paper"})
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _read(name_or_path: str | Path) -> tuple[str, Table]:
    """The recipe's name and its table as written."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        name = str(name_or_path)
        path = shipped("pipelines") / f"{name}.toml"
        if name not in list_recipes():
            raise UserError(f"unknown recipe {name!r}", fix=nearest_fix(name, list_recipes(), "known recipes"))
    try:
        return path.stem, tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError("no such recipe file", where=str(path)) from error
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"is not TOML ({error})", where=str(path)) from error


def _parsed(text: str) -> tuple[str, Any]:
    """'train.lr=0.01' -> ('train.lr', 0.01)."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{text!r} is not KEY=VALUE", where="--set", fix="for example --set train.lr=0.01")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()  # so that --set train.method=supervised needs no quotes


def _nested(values: Mapping[str, Any]) -> Table:
    """Dotted keys into tables of tables."""
    root: Table = {}
    for key, value in values.items():
        *tables, last = key.split(".")
        table = root
        for part in tables:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise UserError(f"{key!r} is inside a key that has a value already", where="--set")
        table[last] = value
    return root


def _merge(into: Table, layer: Table) -> None:
    """Put `layer` over `into`: tables key by key, all else whole."""
    for key, value in layer.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = _merged_copy(value)


def _merged_copy(value: Any) -> Any:
    return {key: _merged_copy(item) for key, item in value.items()} if isinstance(value, dict) else value


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted keys of a model's values."""
    for key, field in model.model_fields.items():
        section = _section(field)
        if section is None:
            yield prefix + key
        else:
            yield from _leaves(section, f"{prefix}{key}.")


def _given(table: Table, model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Dotted keys of the values that a (checked) table gives."""
    for key, value in table.items():
        section = _section(model.model_fields[key])
        if section is not None:
            yield from _given(value, section, f"{prefix}{key}.")
        elif prefix + key == METHOD_CONFIG:
            yield from (f"{METHOD_CONFIG}.{name}" for name in value)
        else:
            yield prefix + key


def _refuse_unknown_keys(table: Table, model: type[BaseModel], prefix: str, where: str) -> None:
    refuse_unknown(table, model.model_fields, f"[{prefix.removesuffix('.')}] of {where}" if prefix else where)
    for key, value in table.items():
        section = _section(model.model_fields[key])
        if section is None and prefix + key != METHOD_CONFIG:
            continue
        if not isinstance(value, dict):
            raise UserError(
                f"{prefix + key!r} is a section, not a value", where=where, fix=f"set a key of it: {prefix}{key}.NAME"
            )
        if section is not None:
            _refuse_unknown_keys(value, section, f"{prefix}{key}.", where)


def _validated(model: type[Model], table: Table, prefix: str, where: str) -> Model:
    """The table as a model; the first fault of several as one UserError with the value met and what was expected."""
    try:
        return model.model_validate(table)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = prefix + ".".join(str(part) for part in fault["loc"])
        met = f" (got {fault['input']!r})" if not isinstance(fault["input"], dict) else ""
        text = fault["msg"].removeprefix("Value error, ")
        raise UserError(f"{key}: {text}{met}", where=where) from error


def _check_method(recipe: Recipe, where: str) -> None:
    """Refuse a `[train.config]` that the method does not know. Imports the method, and with it torch."""
    from cytopipe.methods import find_method

    config = find_method(recipe.train.method).Config
    refuse_unknown(
        recipe.train.config, config.model_fields, f"[{METHOD_CONFIG}] of {where}, method {recipe.train.method}"
    )
    _validated(config, recipe.train.config, f"{METHOD_CONFIG}.", where)
