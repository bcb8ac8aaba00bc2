"""The floors of ARCHITECTURE.md, read off the import statements of every file of the package.

A room imports from lower floors only, rooms of one floor do not know each other, torch and other heavy packages are
imported where they are needed, and a foreign library's names stop at the room that wraps it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import cytopipe

PACKAGE = Path(cytopipe.__file__).parent

FLOORS = (
    ("core",),
    ("slides", "formats", "nets", "metrics", "distribute"),
    ("tiles", "semi", "synth"),
    ("data", "methods", "infer", "report"),
    ("train", "mine", "evaluate"),
    ("recipes",),
    ("steps",),
    ("cli",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

TORCH_ROOMS = {"nets", "semi", "methods", "data", "train", "mine"}
TORCH_FILES = {"infer/predict.py", "infer/segment.py"}
HEAVY = {"torch", "torchvision", "zarr", "dask", "geopandas", "numpy", "scipy", "cv2", "shapely", "pyarrow", "tifffile"}

WRAPPED_IN = {
    "openslide": {"slides"},
    "tifffile": {"slides", "formats"},  # formats: label images
    "imagecodecs": {"slides", "tiles"},
    "dask": {"distribute"},
    "distributed": {"distribute"},
    "typer": {"cli"},
    "click": {"cli"},
    "rich": {"cli"},
    "tensorboard": {"train"},
}
NOT_OF_THE_PRODUCT = {
    "pytest",
    "hypothesis",
    "geopandas",
    "pandas",
    "skimage",
    "matplotlib",
    "faster_coco_eval",
    "sklearn",
}


class Import(NamedTuple):
    """One imported module: where the line stands, what it names, and whether it runs when the file is imported."""

    path: Path
    line: int
    module: str
    at_module_level: bool

    @property
    def room(self) -> str:
        return self.path.relative_to(PACKAGE).parts[0]

    @property
    def foreign(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return f"cytopipe/{self.path.relative_to(PACKAGE)}:{self.line} imports {self.module}"


def imports_in(path: Path) -> Iterator[Import]:
    """All imports of a file, `if TYPE_CHECKING:` blocks as imports that do not run."""

    def walk(node: ast.AST, runs: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(path, child.lineno, name.name, runs) for name in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = _absolute(path, child)
                yield from (Import(path, child.lineno, f"{base}.{name.name}", runs) for name in child.names)
            else:
                yield from walk(child, runs and not _is_deferred(child))

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), runs=True)


def _is_deferred(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.dump(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def _absolute(path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = ("cytopipe", *path.relative_to(PACKAGE).parent.parts)
    return ".".join((*package[: len(package) - node.level + 1], *filter(None, [node.module])))


FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if p.parent != PACKAGE]  # the package's own files are exempt
IMPORTS = [found for path in FILES for found in imports_in(path)]


def room_of(module: str) -> str | None:
    """The room that a module of ours belongs to; None for others, and for the package's own files."""
    parts = module.split(".")
    return parts[1] if parts[0] == "cytopipe" and len(parts) > 1 and parts[1] in FLOOR_OF else None


def offending(found: Import) -> bool:
    """Whether an import goes up, or sideways into another room of the same floor."""
    target = room_of(found.module)
    return target is not None and target != found.room and FLOOR_OF[target] >= FLOOR_OF[found.room]


def test_every_file_stands_in_a_room_with_a_floor():
    homeless = [str(p.relative_to(PACKAGE)) for p in FILES if p.relative_to(PACKAGE).parts[0] not in FLOOR_OF]

    assert not homeless


def test_a_room_imports_from_lower_floors_only():
    upward = [str(found) for found in IMPORTS if offending(found)]

    assert not upward, "\n".join(upward)


@pytest.mark.parametrize(
    ("room", "module", "expected"),
    [
        ("slides", "cytopipe.core.boxes", False),
        ("slides", "cytopipe.slides.view", False),
        ("slides", "cytopipe.formats.qupath", True),
        ("core", "cytopipe.slides", True),
        ("steps", "cytopipe.cli.console", True),
        ("cli", "cytopipe._version", False),
    ],
)
def test_an_import_that_goes_up_or_sideways_is_found(room, module, expected):
    found = Import(PACKAGE / room / "file.py", 1, module, at_module_level=True)

    assert offending(found) == expected


def test_imports_in_functions_and_type_checking_blocks_are_seen_but_do_not_run(tmp_path):
    path = tmp_path / "file.py"
    lines = ["import ast", "if TYPE_CHECKING:", "    import torch", "def f():", "    from rich import box", "class C:"]
    path.write_text("\n".join([*lines, "    import json", ""]))

    seen = {(found.module, found.at_module_level) for found in imports_in(path)}

    assert seen == {("ast", True), ("torch", False), ("rich.box", False), ("json", True)}


def test_torch_is_imported_at_module_level_only_in_the_rooms_that_train_and_predict():
    elsewhere = [
        str(found)
        for found in IMPORTS
        if found.at_module_level
        and found.foreign in ("torch", "torchvision")
        and found.room not in TORCH_ROOMS
        and str(found.path.relative_to(PACKAGE)) not in TORCH_FILES
    ]

    assert not elsewhere, "\n".join(elsewhere)


def test_a_foreign_library_stops_at_its_room():
    leaked = [str(found) for found in IMPORTS if found.room not in WRAPPED_IN.get(found.foreign, {found.room})]

    assert not leaked, "\n".join(leaked)


def test_the_product_imports_nothing_that_only_its_tests_need():
    needless = [str(found) for found in IMPORTS if found.foreign in NOT_OF_THE_PRODUCT]

    assert not needless, "\n".join(needless)


def test_importing_the_command_line_imports_nothing_heavy():
    program = "import sys, cytopipe.cli.main; print(*sorted(sys.modules))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert HEAVY & set(done.stdout.split()) == set()
