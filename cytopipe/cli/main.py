"""The program `cytopipe`: the table of commands, and what is common to all of them (version, usage errors as one line).

Command modules import nothing heavy at module level, so that `cytopipe --help` answers at once: they import their step
inside the function.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from cytopipe._version import __version__
from cytopipe.cli import (
    console,
    convert,
    demo,
    doctor,
    evaluate,
    infer,
    info,
    methods,
    mine,
    models,
    stitch,
    synth,
    tile,
    train,
)

# typer < 0.26 takes its errors from click, later ones carry a copy of their own and export this one only
_UsageError = typer.BadParameter.__base__ or Exception


class _Group(TyperGroup):
    """Words usage errors like every other error: one line on stderr, exit code 2."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        try:
            code = super().main(*args, standalone_mode=False, **extra)
        except _UsageError as error:
            console.put_error(f"error: {_usage_line(error)}")
            code = 2
        except typer.Abort:
            code = console.INTERRUPTED
        if standalone_mode:
            sys.exit(code or 0)
        return code


class _Command(NamedTuple):
    name: str
    panel: str
    function: Callable[..., None]
    example: str


PATH, DATA, LOOK = "From slides to cells", "Data", "Look"

COMMANDS = (
    _Command("tile", PATH, tile.command, "cytopipe tile slides/slides.csv --out tiles --split 1:1:1"),
    _Command("mine-unlabeled", PATH, mine.command, "cytopipe mine-unlabeled slides/ --out mined"),
    _Command("train", PATH, train.command, "cytopipe train --method supervised --labeled tiles --out run"),
    _Command("infer", PATH, infer.command, "cytopipe infer slides/ --out results"),
    _Command("stitch", PATH, stitch.command, "cytopipe stitch predictions.json --windows tiles --out results"),
    _Command("evaluate", PATH, evaluate.command, "cytopipe evaluate results slides"),
    _Command("synth", DATA, synth.command, "cytopipe synth --out slides --slides 3"),
    _Command("convert", DATA, convert.command, "cytopipe convert slides/synth-0000.geojson --out cells.json"),
    _Command("info", DATA, info.command, "cytopipe info slides/synth-0000.tif"),
    _Command("demo", LOOK, demo.command, "cytopipe demo --out demo"),
    _Command("methods", LOOK, methods.command, "cytopipe methods"),
    _Command("models", LOOK, models.command, "cytopipe models"),
    _Command("doctor", LOOK, doctor.command, "cytopipe doctor"),
)

app = typer.Typer(
    name="cytopipe",
    cls=_Group,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(
    invoke_without_command=True,
    epilog="Try it without any data:  [bold]cytopipe demo --out demo[/bold]",
)
def _program(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="show the version and exit")] = False,
) -> None:
    """From whole-slide cytology to located cells: tile, mine, train semi-supervised, infer."""
    if version:
        console.put(f"cytopipe {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        ctx.get_help()  # prints by itself
        raise typer.Exit


for _command in COMMANDS:
    app.command(
        _command.name,
        rich_help_panel=_command.panel,
        epilog=f"Example:  [bold]{_command.example}[/bold]",
        no_args_is_help=False,
    )(_command.function)


def main() -> None:
    """The entry point of the installed program."""
    if not sys.warnoptions and "--debug" not in sys.argv:
        warnings.simplefilter(
            "ignore"
        )  # a library's warning is no sentence for the user; rooms say in their own words what matters
    try:
        app()
    finally:
        console.flush()


def _usage_line(error: Any) -> str:
    text = " ".join(error.format_message().split()).rstrip(".")
    path = error.ctx.command_path if error.ctx else "cytopipe"
    return f"{text[:1].lower()}{text[1:]}; see `{path} --help`"


if __name__ == "__main__":
    main()
