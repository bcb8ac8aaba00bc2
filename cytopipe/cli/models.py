"""`cytopipe models`: the model bundles that can be given by name, and new ones from weights of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cytopipe.cli import options
from cytopipe.cli.console import Session, table
from cytopipe.cli.options import mpp_option, option, tile_px_option
from cytopipe.core.errors import UserError

if TYPE_CHECKING:
    from cytopipe.steps.catalogue import ModelFacts

IMPORT = "import"
PANEL = "With import"


def command(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|DIR|import", show_default=False, help="show this model's facts and card; or make a new one"
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Argument(
            metavar="WEIGHTS",
            show_default=False,
            help="with import: a state dict of torch or safetensors, by torchvision's names or ours",
        ),
    ] = None,
    out: Annotated[
        Path | None, option("--out", "folder to write; the new model", panel=PANEL, metavar="DIR", shown=False)
    ] = None,
    architecture: Annotated[
        str | None, option("--architecture", "of the network, e.g. mask-rcnn-resnet50-fpn", panel=PANEL, shown=False)
    ] = None,
    classes: Annotated[
        str | None,
        option(
            "--classes", "its classes in their order, e.g. nucleus,HSIL", panel=PANEL, metavar="A,B,...", shown=False
        ),
    ] = None,
    mpp: Annotated[float | None, mpp_option(False)] = None,
    tile_px: Annotated[int | None, tile_px_option("1024")] = None,
    max_object_px: Annotated[
        float | None,
        option("--max-object-px", "longest side of an object, px", panel=PANEL, metavar="PX", shown=False),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """List the shipped models, show one (what it finds, on what it was trained, what it is not for), or import one:
    cytopipe models import WEIGHTS --architecture NAME --classes A,B --mpp 0.25 --max-object-px 120 --out DIR.
    """
    with Session(json=json, quiet=quiet, debug=debug) as io:
        from cytopipe.steps.catalogue import list_models, show_model
        from cytopipe.steps.import_model import DEFAULT_TILE_PX, import_model

        given = {"WEIGHTS": weights, "--out": out, "--architecture": architecture, "--classes": classes, "--mpp": mpp}
        if name == IMPORT:
            missing = [flag for flag, value in given.items() if value is None]
            if missing:
                raise UserError(f"{', '.join(missing)}: missing", where="cytopipe models import")
            model = import_model(
                weights,
                out,
                architecture=architecture,
                classes=[part.strip() for part in classes.split(",")],
                mpp=mpp,
                tile_px=tile_px or DEFAULT_TILE_PX,
                max_object_px=max_object_px,
            )
            io.result([*_facts(model), f"next: cytopipe infer SLIDE --model {model.folder}"], model)
            return
        given |= {"--tile-px": tile_px, "--max-object-px": max_object_px}
        if unused := [flag for flag, value in given.items() if value is not None]:
            raise UserError(f"{unused[0]} goes with import only", fix="cytopipe models import WEIGHTS ...")
        if name is None:
            rows = list_models()
            lines = table(
                ("model", "task", "µm/px", "MB", "classes"),
                [(m.name, m.task, m.mpp, m.size_mb, ", ".join(m.classes)) for m in rows],
            )
            io.result([*lines, "next: cytopipe models NAME, or cytopipe infer SLIDE --model NAME"], rows)
        else:
            model = show_model(name)
            io.result([*_facts(model), *(["", *model.card.splitlines()] if model.card else [])], model)


def _facts(model: ModelFacts) -> list[str]:
    return [
        f"{model.name}: {model.task} at {model.mpp} µm/px",
        f"classes: {', '.join(model.classes)}",
        f"folder: {model.folder}",
        f"sha256: {model.sha256}",
    ]
