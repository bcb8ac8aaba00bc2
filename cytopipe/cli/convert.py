"""`cytopipe convert`: annotations in one format to COCO or QuPath; a tile store to COCO; results to any format."""

from __future__ import annotations

import difflib
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cytopipe.cli import options
from cytopipe.cli.console import Session, table
from cytopipe.cli.options import option

if TYPE_CHECKING:
    from cytopipe.steps.convert import ConvertResult
    from cytopipe.steps.convert_results import ConvertedResults

MAX_ROWS_SHOWN = 20  # images of one run; --json lists all


FORMATS = ("coco", "geojson", "parquet", "zarr", "csv")
OF_ANNOTATIONS = ("coco", "geojson")


class Frame(StrEnum):
    """Frames of GeoJSON files."""

    bounds = "bounds"
    slide = "slide"


class ZarrVersion(StrEnum):
    """Versions of OME-Zarr."""

    v05 = "0.5"
    v04 = "0.4"


def _formats(text: str) -> str:
    for name in text.split(","):
        if name not in FORMATS:
            near = difflib.get_close_matches(name, FORMATS, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(FORMATS)}"
            raise typer.BadParameter(f"{name!r} is no format; {fix}")
    return text


def command(
    annotations: Annotated[
        list[Path],
        typer.Argument(
            metavar="ANNOTATIONS|RESULTS",
            show_default=False,
            help="GeoJSON, COCO, Aperio, ASAP or VOC XML, label images, CSV; folders of them; one tile store; or "
            "results of infer",
        ),
    ],
    out: Annotated[
        Path | None,
        option(
            "--out",
            "folder to write; here a file, but for results and the GeoJSON of several images",
            metavar="FILE|DIR",
            shown="of results: beside them",
        ),
    ] = None,
    write: Annotated[
        str,
        option(
            "--write",
            "format to write: coco or geojson; of results also parquet, zarr, csv, and several with commas between",
            metavar="FORMAT",
            parser=_formats,
        ),
    ] = "coco",
    frame: Annotated[Frame, option("--frame", "frame of GeoJSON, read and written: bounds is QuPath's")] = Frame.bounds,
    bounds_offset: Annotated[
        tuple[int, int] | None,
        option("--bounds-offset", "corner of the slide's bounds in level-0 px", metavar="X Y", shown="the slide's"),
    ] = None,
    slide: Annotated[
        Path | None, option("--slide", "slide of a lone image, for its size and its bounds", metavar="SLIDE")
    ] = None,
    image: Annotated[
        str | None, option("--image", "image to take of a file that holds several", metavar="NAME", shown="all")
    ] = None,
    class_map: Annotated[
        list[str] | None, option("--class-map", "rename a class; may be given often", metavar="FROM=TO")
    ] = None,
    ignore: Annotated[
        list[str] | None, option("--ignore", "leave a class out; may be given often", metavar="CLASS")
    ] = None,
    label_class: Annotated[
        str | None,
        option("--label-class", "class of objects whose file names none: label images", metavar="CLASS"),
    ] = None,
    split: Annotated[
        str | None, option("--split", "part of a tile store to write", metavar="PART", shown="all")
    ] = None,
    geojson_gz: Annotated[bool, option("--geojson-gz", "of results: GeoJSON packed with gzip")] = False,
    split_mb: Annotated[
        float | None,
        option(
            "--split-mb",
            "of results: GeoJSON in files of at most so many MB, before gzip",
            metavar="MB",
            min=0.001,
            shown="one file",
        ),
    ] = None,
    zarr_version: Annotated[
        ZarrVersion, option("--zarr-version", "of results: OME-Zarr 0.5 (zarr v3) or 0.4 (zarr v2)")
    ] = ZarrVersion.v05,
    zarr_mpp: Annotated[
        float | None,
        option(
            "--zarr-mpp",
            "of results: µm per pixel of the finest label image",
            metavar="UM",
            min=0.001,
            shown="level 0",
        ),
    ] = None,
    replace: Annotated[bool, option("--replace", "write over a file that exists")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write annotations as COCO or QuPath GeoJSON; say what was mended, refused and ignored. Or write results of
    `infer` in other formats.
    """
    with Session(json=json, quiet=quiet, debug=debug) as io:
        from cytopipe.core.errors import UserError
        from cytopipe.formats.read import parse_class_map
        from cytopipe.formats.results import WriteOptions
        from cytopipe.steps.convert import convert
        from cytopipe.steps.convert_results import convert_results, results_in

        parts = list(dict.fromkeys(write.split(",")))
        of_annotations = {
            "--bounds-offset": bounds_offset,
            "--slide": slide,
            "--image": image,
            "--class-map": class_map,
            "--ignore": ignore,
            "--label-class": label_class,
            "--split": split,
        }
        of_results = {
            "--geojson-gz": geojson_gz,
            "--split-mb": split_mb,
            "--zarr-version": zarr_version is not ZarrVersion.v05,
            "--zarr-mpp": zarr_mpp,
        }
        folders = results_in(annotations)
        misplaced = next((flag for flag, value in (of_annotations if folders else of_results).items() if value), None)
        if misplaced:
            what = "belongs to annotations, and these are results" if folders else "belongs to results of infer"
            raise UserError(what, where=misplaced, fix="leave it out")
        if folders:
            options_of_files = WriteOptions(frame.value, geojson_gz, split_mb, zarr_version.value, zarr_mpp)
            converted = convert_results(
                folders, out, write=parts, options=options_of_files, replace=replace, on_progress=io.progress
            )
            io.result(_lines_of_results(converted), {"results": converted})
            return
        if out is None:
            raise UserError("is missing", where="--out", fix="say where to write")
        if len(parts) > 1 or parts[0] not in OF_ANNOTATIONS:
            what = f"{write}: annotations are written as one of {', '.join(OF_ANNOTATIONS)}"
            raise UserError(what, where="--write", fix="give one of them")
        result = convert(
            annotations,
            out,
            write=parts[0],
            frame=frame.value,
            bounds_offset=bounds_offset,
            slide=slide,
            image=image,
            class_map=parse_class_map(class_map or ()),
            ignore=ignore or (),
            label_class=label_class,
            split=split,
            replace=replace,
            on_progress=io.progress,
            say=io.say,
        )
        io.result(_lines(result), {"result": result, "problems": _problems(result)})


def _lines_of_results(converted: list[ConvertedResults]) -> list[str]:
    rows = [(one.slide_id, one.objects, len(one.files), str(one.files[0].parent)) for one in converted[:MAX_ROWS_SHOWN]]
    more = len(converted) - len(rows)
    total = sum(one.objects for one in converted)
    return [
        *table(("slide", "objects", "files", "folder"), rows),
        *([f"and {more} more slides"] if more else []),
        f"{total} objects of {len(converted)} slide{'s' * (len(converted) != 1)} written",
    ]


def _lines(result: ConvertResult) -> list[str]:
    where = str(result.files[0]) if len(result.files) == 1 else f"{len(result.files)} files in {result.files[0].parent}"
    if result.tiles:
        left_out = f", {result.tiles_left_out} tiles left out that nobody annotated" if result.tiles_left_out else ""
        return [f"{result.tiles} tiles, {result.objects} objects{left_out}; written to {where}"]
    rows = [
        (image.image, image.objects, image.mended, image.refused, sum(image.ignored.values()))
        for image in result.images[:MAX_ROWS_SHOWN]
    ]
    more = len(result.images) - len(rows)
    total = f"{result.objects} objects of {len(result.classes)} classes written to {where}"
    return [
        *table(("image", "objects", "mended", "refused", "ignored"), rows),
        *([f"and {more} more images"] if more else []),
        f"{total}: {result.mended} mended, {result.refused} refused, {result.ignored} ignored",
    ]


def _problems(result: ConvertResult) -> list[dict[str, str]]:
    """Every object that was mended or refused, each with its image."""
    return [
        {"image": image.image, "object_id": problem.object_id, "done": problem.done, "what": problem.what}
        for image in result.images
        for problem in image.problems
    ]
