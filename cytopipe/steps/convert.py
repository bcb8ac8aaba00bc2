"""`cytopipe convert`: annotation files of any format, or a tile store, as COCO or as QuPath's GeoJSON.

Enters: files that `formats/read.py` reads, or a store.  Leaves: one COCO file of all their images; or a GeoJSON an
image; and a `ConvertResult` that counts what was mended, refused and ignored, object by object.

Coordinates: COCO in frame slide (of a store: px of each tile image), exactly as read; GeoJSON in frame bounds unless
told, to 1/1000 px.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path, PurePosixPath
from typing import Literal

import shapely
import shapely.affinity

from cytopipe.core.errors import UserError, nearest_fix
from cytopipe.core.progress import OnProgress, Say, silent, unsaid
from cytopipe.formats.annotations import Annotation, AnnotationFile, Problem
from cytopipe.formats.coco import CocoImage, CocoWriter
from cytopipe.formats.drawn import finite_number
from cytopipe.formats.qupath import SCORE, Frame, QuPathWriter
from cytopipe.formats.read import ANNOTATION_SUFFIXES, images_in, read_annotations
from cytopipe.slides import open_slide
from cytopipe.tiles import TileStore
from cytopipe.tiles.store import STORE_JSON

Format = Literal["coco", "geojson"]

MAX_LINES_SAID = 10  # of all problems; the rest stand in the result
GEOJSON_SUFFIXES = (".geojson", ".json")


@dataclass(frozen=True, slots=True)
class ConvertedImage:
    """One image or slide: where its objects came from, how many were written, and what became of the others."""

    image: str
    source: Path
    objects: int
    mended: int
    refused: int
    ignored: Mapping[str, int]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """What was written.

    files        one COCO file, or a GeoJSON an image
    classes      of the objects, by name
    tiles        of a store that were written, and `tiles_left_out` that nobody annotated; 0 for files
    """

    files: tuple[Path, ...]
    images: tuple[ConvertedImage, ...]
    classes: tuple[str, ...]
    objects: int
    tiles: int = 0
    tiles_left_out: int = 0

    @property
    def mended(self) -> int:
        """Objects mended, in all images."""
        return sum(image.mended for image in self.images)

    @property
    def refused(self) -> int:
        """Objects refused, in all images."""
        return sum(image.refused for image in self.images)

    @property
    def ignored(self) -> int:
        """Objects of ignored classes, in all images."""
        return sum(sum(image.ignored.values()) for image in self.images)


@dataclass(frozen=True, slots=True)
class _Read:
    """One image with its objects; `name` is unique in the run."""

    name: str
    source: Path
    found: AnnotationFile


def convert(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    write: Format,
    frame: Frame = "bounds",
    bounds_offset: tuple[int, int] | None = None,
    slide: str | Path | None = None,
    image: str | None = None,
    class_map: Mapping[str, str] | None = None,
    ignore: Collection[str] = (),
    label_class: str | None = None,
    split: str | None = None,
    replace: bool = False,
    on_progress: OnProgress = silent,
    say: Say = unsaid,
) -> ConvertResult:
    """Write annotations in another format.

    sources        annotation files, folders of them, or one tile store
    out            a file; a folder where several images become a GeoJSON each
    frame          of GeoJSON files, read and written
    bounds_offset  x, y of the bounds in level-0 px; None: the slide's, or 0, 0
    slide          the slide of a lone image: its size and its bounds
    image          the one image to take of files that hold several; None takes all
    class_map, ignore, label_class   as `read_annotations` takes them
    split          the part of a store to write; None takes all
    replace        write over a file that exists
    Raises UserError before anything is written when a file as a whole cannot be read, or the arguments do not fit.
    """
    out, paths = Path(out), [Path(source) for source in sources]
    if out.exists() and not replace and not (write == "geojson" and out.is_dir()):
        raise UserError("exists already", where=str(out), fix="choose another --out, or give --replace")
    store = next((path for path in paths if (path / STORE_JSON).is_file()), None)
    if store is not None:
        if len(paths) > 1 or write != "coco":
            raise UserError("is a tile store: it is converted alone, and to COCO", where=str(store))
        given = [slide, image, class_map, ignore, label_class, bounds_offset]
        if any(given):
            raise UserError("is a tile store: its classes and frame are settled", where=str(store), fix="cut it again")
        return _store_to_coco(TileStore(store), out, split, on_progress)
    if split is not None:
        raise UserError("belongs to a tile store, and these are none", where="--split", fix="leave it out")
    pairs = [(path, name) for path in _files(paths) for name in ([image] if image else images_in(path) or [None])]
    size = None
    if slide is not None:
        if len(pairs) > 1:
            raise UserError(f"is one slide for {len(pairs)} images", where=str(slide), fix="give --image, or one file")
        with open_slide(Path(slide)) as opened:
            size = opened.dimensions
            bounds_offset = bounds_offset or opened.bounds_offset
    offset = bounds_offset or (0, 0)
    images: list[_Read] = []
    for done, (path, name) in enumerate(pairs, start=1):
        found = read_annotations(
            path,
            frame=frame,
            bounds_offset=offset,
            slide_size=size,
            image=name,
            class_map=class_map,
            ignore=ignore,
            label_class=label_class,
        )
        images.append(_Read(Path(slide).name if slide else found.image or path.stem, path, found))
        on_progress(done, len(pairs), "images")
    images = _named_apart(images)
    _say_problems(images, say)
    files = _write_coco(images, out) if write == "coco" else _write_geojson(images, out, frame, offset, replace)
    return ConvertResult(
        files,
        tuple(_converted(read) for read in images),
        _classes(images),
        sum(len(read.found.objects) for read in images),
    )


def _files(paths: Sequence[Path]) -> list[Path]:
    """The files at the given places, folders by name. Raises UserError for a folder without any."""
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in ANNOTATION_SUFFIXES and p.is_file())
        if not found:
            raise UserError("holds no annotation file, and is no tile store", where=str(path))
        files += found
    return files


def _named_apart(images: Sequence[_Read]) -> list[_Read]:
    """The same; where two files give one name (as exports do that call every image `image.png`), by their own."""
    names = [read.name for read in images]
    if len(set(names)) == len(names):
        return list(images)
    taken = {name for name in names if names.count(name) > 1}
    images = [changed(read, name=read.source.stem) if read.name in taken else read for read in images]
    seen: dict[str, Path] = {}
    for read in images:
        if read.name in seen:
            raise UserError(
                f"and {seen[read.name]} are both of an image {read.name!r}", where=str(read.source), fix="rename one"
            )
        seen[read.name] = read.source
    return images


def _say_problems(images: Sequence[_Read], say: Say) -> None:
    lines = [f"{read.source.name}: {problem}" for read in images for problem in read.found.problems]
    for line in lines[:MAX_LINES_SAID]:
        say(line)
    if len(lines) > MAX_LINES_SAID:
        say(f"and {len(lines) - MAX_LINES_SAID} more objects mended or refused; --json lists all")


def _converted(read: _Read) -> ConvertedImage:
    found = read.found
    return ConvertedImage(
        read.name,
        read.source,
        len(found.objects),
        found.mended,
        found.refused,
        dict(found.ignored),
        tuple(found.problems),
    )


def _classes(images: Sequence[_Read]) -> tuple[str, ...]:
    return tuple(sorted({annotation.class_name for read in images for annotation in read.found.objects}))


def _write_coco(images: Sequence[_Read], out: Path) -> tuple[Path, ...]:
    entries = [CocoImage(k, read.name, *_size_of(read.found)) for k, read in enumerate(images, start=1)]
    numbers = _own_numbers(images)
    out.parent.mkdir(parents=True, exist_ok=True)
    with CocoWriter(out, entries, _classes(images)) as writer:
        for entry, read in zip(entries, images, strict=True):
            for annotation in read.found.objects:
                writer.add(entry.id, annotation, coco_id=int(annotation.object_id) if numbers else None)
    return (out,)


def _size_of(found: AnnotationFile) -> tuple[int, int]:
    """Width and height of an image, px; where nobody says, so far as its objects reach."""
    if found.size is not None:
        return found.size
    _, _, x1, y1 = shapely.total_bounds([a.geometry for a in found.objects]) if found.objects else (0, 0, 1, 1)
    return max(1, math.ceil(x1)), max(1, math.ceil(y1))


def _own_numbers(images: Sequence[_Read]) -> bool:
    """Whether all ids are numbers as COCO wants them, each once: then they are kept as they are."""
    ids = [annotation.object_id for read in images for annotation in read.found.objects]
    plain = all(i.isascii() and i.isdecimal() and len(i) < 16 and i == str(int(i)) and i != "0" for i in ids)
    return plain and len(set(ids)) == len(ids)


def _write_geojson(
    images: Sequence[_Read], out: Path, frame: Frame, offset: tuple[int, int], replace: bool
) -> tuple[Path, ...]:
    is_file = out.suffix.lower() in GEOJSON_SUFFIXES and not out.is_dir()
    if is_file and len(images) > 1:
        raise UserError(
            f"is one file for {len(images)} images", where=str(out), fix="give a folder as --out, or --image NAME"
        )
    files = [out] if is_file else [out / f"{_file_stem(read.name)}.geojson" for read in images]
    clash = next((path for path in files if path.exists() and not replace), None)
    if clash is not None:
        raise UserError("exists already", where=str(clash), fix="choose another --out, or give --replace")
    if len(set(files)) < len(files):
        raise UserError("two images would be written to one file", where=str(out), fix="convert them one by one")
    files[0].parent.mkdir(parents=True, exist_ok=True)
    for path, read in zip(files, images, strict=True):
        with QuPathWriter(path, frame=frame, bounds_offset=offset) as writer:
            for annotation in read.found.objects:
                score = finite_number(annotation.attributes.get(SCORE))
                if score is None:
                    writer.add(annotation)
                else:  # only what a program found has one
                    writer.add(annotation, object_type="detection", measurements={SCORE: score})
    return tuple(files)


def _file_stem(name: str) -> str:
    """The name of a file for an image: without its folders, and without a suffix that images have."""
    base = PurePosixPath(name.replace("\\", "/")).name or "image"
    suffix = PurePosixPath(base).suffix
    return base.removesuffix(suffix) if suffix[1:].isalnum() and not suffix[1:].isdecimal() else base


def _store_to_coco(store: TileStore, out: Path, split: str | None, on_progress: OnProgress) -> ConvertResult:
    """The labelled tiles of a store: a tile that nobody annotated is no image without objects, and is left out."""
    where = str(store.folder)
    if store.info.codec == "zarr":
        raise UserError(
            "keeps its images in zarr, which COCO cannot point to", where=where, fix="cut it with --codec jpeg or png"
        )
    parts = sorted(set(store.column("split").to_pylist()))
    if split is not None and split not in parts:
        raise UserError(f"has no tile in a part {split!r}", where=where, fix=nearest_fix(split, parts, "its parts"))
    rows = store.rows(split=split, labelled=True).tolist()
    if not rows:
        raise UserError("has no labelled tile", where=where, fix="cut it again with annotations (`cytopipe tile`)")
    out.parent.mkdir(parents=True, exist_ok=True)
    classes = [c.name for c in store.info.classes]
    objects = 0
    with ExitStack() as stack:
        writer = stack.enter_context(CocoWriter(out, _tile_images(store, rows, out), classes))
        for done, i in enumerate(rows, start=1):
            x0, y0, x1, y1 = store.tile_box(i)
            px = store.info.tile_px
            for piece in store.objects_of(i):
                # tile px = (level-0 px - the tile's corner) * the tile's px per level-0 px
                scale = (px / (x1 - x0), 0, 0, px / (y1 - y0), -x0 * px / (x1 - x0), -y0 * px / (y1 - y0))
                geometry = shapely.affinity.affine_transform(piece.geometry, scale)
                attributes = {"truncated": "1"} if piece.truncated else {}
                attributes |= {"crowd": "1"} if piece.crowd else {}
                writer.add(i + 1, Annotation(piece.object_id, piece.class_name, geometry, attributes))
                objects += 1
            on_progress(done, len(rows), "tiles")
    left_out = len(store.rows(split=split)) - len(rows)
    return ConvertResult((out,), (), tuple(classes), objects, len(rows), left_out)


def _tile_images(store: TileStore, rows: Sequence[int], out: Path) -> Iterator[CocoImage]:
    folder = Path(os.path.relpath(store.folder, out.parent)).as_posix()
    px = store.info.tile_px
    tables = [store.column(name).take(rows).to_pylist() for name in ("path", "slide_id", "patient", "split", "mpp")]
    for i, path, slide_id, patient, split, mpp in zip(rows, *tables, strict=True):
        extra = {"slide_id": slide_id, "patient": patient, "split": split, "mpp": mpp}
        yield CocoImage(i + 1, f"{folder}/{path}", px, px, {**extra, "box": list(store.tile_box(i))})
