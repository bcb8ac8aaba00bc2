"""The windows picked on a slide, as rows of an unlabelled tile store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cytopipe.mine.choose import Picked
from cytopipe.slides import Foreground, MppView
from cytopipe.tiles import LostTile, StoreInfo, TileRow, cut_windows, slide_box


def cut_picked(
    picked: Sequence[Picked],
    view: MppView,
    foreground: Foreground,
    info: StoreInfo,
    *,
    model_sha256: str,
    workers: int,
) -> Iterator[TileRow | LostTile]:
    """Cut the windows, by rows. `view` is the slide at the resolution of the store that `info` describes."""
    at = {(window.x, window.y): window for window in picked}
    cuts = cut_windows(
        view,
        at,
        info.tile_px,
        codec=info.codec,
        quality=info.quality,
        workers=workers,
        glass=foreground.glass,
    )
    for cut in cuts:
        if isinstance(cut, LostTile):
            yield cut
            continue
        window = at[cut.x, cut.y]
        x0, y0, x1, y1 = slide_box(view, cut.x, cut.y, info.tile_px)
        yield TileRow(
            cut.x,
            cut.y,
            x0,
            y0,
            x1,
            y1,
            mpp=view.mpp,
            foreground=foreground.fraction(x0, y0, x1, y1),
            sharpness=cut.sharpness,
            glass=cut.glass,
            labelled=False,
            origin="random" if window.strategy == "random" else "mined",
            image=cut.image,
            score=window.score,
            model=model_sha256,
            z=cut.z,
            copied=cut.is_copied,
        )
