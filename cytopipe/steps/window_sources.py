"""Where another program's windows lie: a tile store, or a table of them; slide by slide, with sizes and resolution.

Enters: WINDOWS of `stitch`.  Leaves: `WindowSource`. All lengths are level-0 px.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cytopipe.core.boxes import clip_boxes
from cytopipe.core.classes import ObjectClass
from cytopipe.core.errors import UserError
from cytopipe.core.progress import unsaid
from cytopipe.formats.window_table import read_windows
from cytopipe.report.gallery import Crop
from cytopipe.slides import MppView, SlideEntry, list_slides, open_slide, thumbnail
from cytopipe.tiles import TileStore

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

LONE_SLIDE = "slide"  # the folder where a table of windows names no slide
THUMBNAIL_PX = 1600
_BARE, _RUN = 222, 250  # grey levels of a drawn map: not looked at, and looked at
_NO_FOLDER = '/\\:*?"<>|'  # signs that no slide_id may hold, as in slide lists


@dataclass(frozen=True, slots=True, eq=False)
class SlideWindows:
    """The windows of one slide, W of them.

    size            width and height of the slide
    mpp             level-0 µm/px along x and y, None where unknown
    bounds_offset   x, y of frame bounds in frame slide
    rows            (W,) of WINDOWS
    boxes           (W, 4) float64 x0 y0 x1 y1; a padded window hangs over the slide's border
    scale           (W, 2) float64, level-0 px per window px
    notes           what the user should know
    """

    slide_id: str
    size: tuple[int, int]
    mpp: tuple[float, float] | None
    bounds_offset: tuple[int, int]
    rows: NDArray[np.intp]
    boxes: F64
    scale: F64
    notes: tuple[str, ...]
    store: TileStore | None
    entry: SlideEntry | None

    @contextlib.contextmanager
    def pictures(self) -> Iterator[tuple[U8, Crop]]:
        """A thumbnail, and a function that cuts crops: of the slide where it is at hand, else of the store's tiles.

        Where there are no pixels at all, a map of the windows and bare crops.
        """
        if self.entry is not None:
            with open_slide(self.entry.path, mpp_override=self.entry.mpp) as slide:
                native = MppView(slide, None)  # pads what lies past the border

                def from_slide(box: tuple[int, int, int, int]) -> U8:
                    x0, y0, x1, y1 = box
                    return native.read(x0, y0, max(x1 - x0, 1), max(y1 - y0, 1))

                yield thumbnail(slide, THUMBNAIL_PX), from_slide
        else:
            yield self._map(), self._from_tiles

    def _map(self) -> U8:
        """Where windows were run, drawn."""
        width, height = self.size
        shrink = min(1.0, THUMBNAIL_PX / max(width, height))
        picture = np.full((max(round(height * shrink), 1), max(round(width * shrink), 1), 3), _BARE, np.uint8)
        for x0, y0, x1, y1 in np.rint(np.maximum(self.boxes, 0) * shrink).astype(int):
            picture[y0:y1, x0:x1] = _RUN
        return picture

    def _from_tiles(self, box: tuple[int, int, int, int]) -> U8:
        """The area out of the tile that shows most of it; bare where there is none."""
        x0, y0, x1, y1 = box
        crop = np.full((max(y1 - y0, 1), max(x1 - x0, 1), 3), _RUN, np.uint8)
        if self.store is None:
            return crop
        shown = clip_boxes(self.boxes, np.array(box, dtype=np.float64))
        area = (shown[:, 2] - shown[:, 0]) * (shown[:, 3] - shown[:, 1])
        best = int(area.argmax())
        if not area[best] > 0:
            return crop
        left, top = self.boxes[best, :2]
        image = self.store.read_image(int(self.rows[best]))
        per_px = (self.boxes[best, 2] - left) / image.shape[1], (self.boxes[best, 3] - top) / image.shape[0]
        # output px -> tile px, centre to centre
        move = np.array(
            [
                [1 / per_px[0], 0, (x0 + 0.5 - left) / per_px[0] - 0.5],
                [0, 1 / per_px[1], (y0 + 0.5 - top) / per_px[1] - 0.5],
            ]
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return np.asarray(
            cv2.warpAffine(
                image, move, crop.shape[1::-1], flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=(_RUN,) * 3
            )
        )


@dataclass(frozen=True, slots=True, eq=False)
class WindowSource:
    """All windows, slide by slide.

    row_of    window id -> row of WINDOWS
    tile_px   side of a window in window px; None: window px are level-0 px
    classes   what the store says of its classes; empty for a table
    ids_are   how windows are named, for an error
    """

    where: str
    slides: list[SlideWindows]
    row_of: dict[str, int]
    tile_px: float | None
    classes: tuple[ObjectClass, ...]
    ids_are: str


def open_windows(
    path: Path,
    *,
    slide_size: tuple[int, int] | None,
    tile_px: float | None,
    slides: Sequence[str | Path],
    mpp_override: float | None,
) -> WindowSource:
    """The windows of a tile store (a folder) or of a table. Raises UserError for a slide of unknown size, a window
    outside of its slide, and what `TileStore` and `read_windows` raise.
    """
    known = _Known(
        path, slide_size, tile_px, mpp_override, {e.slide_id: e for e in list_slides(slides, unsaid)} if slides else {}
    )
    if path.is_dir():
        return _of_store(path, known)
    table = read_windows(path)
    names = table.slide_ids if table.slide_ids is not None else np.full(len(table.ids), LONE_SLIDE, object)
    if table.slide_ids is None and len(known.entries) == 1:
        known.entries[LONE_SLIDE] = next(iter(known.entries.values()))
    parts = []
    for slide_id in sorted(set(names)):
        if slide_id in (".", "..") or any(sign in _NO_FOLDER or not sign.isprintable() for sign in slide_id):
            raise UserError(f"slide_id {slide_id!r} cannot name a folder", where=str(path))
        rows = np.flatnonzero(names == slide_id)
        parts.append(known.slide(slide_id, rows, table.boxes[rows], table.ids, None, None, None))
    row_of = {window_id: row for row, window_id in enumerate(table.ids)}
    return WindowSource(path.name, parts, row_of, tile_px, (), "give the window_id of WINDOWS as image_id or window_id")


def _of_store(path: Path, known: _Known) -> WindowSource:
    store = TileStore(path)
    if known.tile_px is None:
        known.tile_px = float(store.info.tile_px)
    names = np.array(store.column("slide_id").to_pylist(), dtype=object)
    ids = np.array(store.column("tile_id").to_pylist(), dtype=object)
    if not len(ids):
        raise UserError("holds no tile", where=str(path))
    boxes = np.column_stack([store.column(edge).to_numpy() for edge in ("x0", "y0", "x1", "y1")]).astype(np.float64)
    slides = {row["slide_id"]: row for row in store.slides.to_pylist()}
    parts = []
    for slide_id in sorted(set(names)):
        rows, row = np.flatnonzero(names == slide_id), slides[slide_id]
        size = (row["width_px"], row["height_px"]) if row["width_px"] and row["height_px"] else None
        mpp = (row["mpp_x"], row["mpp_y"]) if row["mpp_x"] and row["mpp_y"] else None
        parts.append(known.slide(slide_id, rows, boxes[rows], ids, size, mpp, store))
    row_of = {str(number): row for row, number in enumerate(range(1, len(ids) + 1))}
    row_of |= {tile_id: row for row, tile_id in enumerate(ids)}
    ids_are = "a tile is named by its tile_id, or by its number from 1, as `cytopipe convert STORE` writes it"
    return WindowSource(path.name, parts, row_of, known.tile_px, tuple(store.info.classes), ids_are)


@dataclass(slots=True)
class _Known:
    """What the command line says of all slides."""

    path: Path
    slide_size: tuple[int, int] | None
    tile_px: float | None
    mpp_override: float | None
    entries: dict[str, SlideEntry]

    def slide(
        self,
        slide_id: str,
        rows: NDArray[np.intp],
        boxes: F64,
        ids: NDArray[Any],
        size: tuple[int, int] | None,
        mpp: tuple[float, float] | None,
        store: TileStore | None,
    ) -> SlideWindows:
        """One slide. What its file says goes before what the store noted, and flags before both."""
        entry, offset, notes = self.entries.get(slide_id), (0, 0), []
        if entry is not None:
            with open_slide(entry.path, mpp_override=entry.mpp) as slide:
                size, offset = slide.dimensions, slide.bounds_offset
                mpp = (slide.resolution.mpp_x, slide.resolution.mpp_y) if slide.resolution else mpp
        size = self.slide_size or size
        if size is None:
            raise UserError(
                f"the size of slide {slide_id!r} is not known", where=str(self.path), fix="give --slide-size W H"
            )
        mpp = (self.mpp_override, self.mpp_override) if self.mpp_override else mpp
        if mpp is None:
            notes.append("no resolution is known: areas in µm² are left empty; --mpp-override gives it")
        sides = boxes[:, 2:] - boxes[:, :2]
        cut = clip_boxes(boxes, np.array([0.0, 0.0, *size]))
        for k in np.flatnonzero(~(cut[:, 2:] > cut[:, :2]).all(axis=1)):
            x0, y0, x1, y1 = boxes[k]
            what = f"window {ids[rows[k]]!r} ({x0:g}, {y0:g} to {x1:g}, {y1:g}) lies outside of slide {slide_id!r} "
            raise UserError(f"{what}of {size[0]} x {size[1]} px", where=str(self.path), fix="check --slide-size")
        scale = np.ones_like(sides) if self.tile_px is None else sides / self.tile_px
        if self.tile_px is not None and (np.abs(scale[:, 0] / scale[:, 1] - 1) > 0.01).any():
            odd = int((np.abs(scale[:, 0] / scale[:, 1] - 1) > 0.01).sum())
            notes.append(f"{odd} windows are not square: each of their sides is taken for {self.tile_px:g} window px")
        return SlideWindows(slide_id, size, mpp, offset, rows, boxes, scale, tuple(notes), store, entry)
