"""objects.coco.json: the objects as annotations of one COCO image, the slide at level 0.

Enters: groups of objects, level-0 px.  Leaves: run lengths of their pixels, with score, box and `object_id`.
Differs  a slide of more than 2^32 - 1 px has polygons in place of run lengths: pycocotools counts pixels in 32 bits and
         reads longer counts wrongly, and a mask of that size is 4 GB an object.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from cytopipe.formats.annotations import Annotation
from cytopipe.formats.coco import CocoImage, CocoWriter
from cytopipe.formats.qupath import SCORE
from cytopipe.formats.results.schema import FLAG_TEXTS, Group, ResultsInfo
from cytopipe.formats.run_lengths import MAX_PIXELS, run_lengths

IMAGE_ID = 1


class CocoResults:
    """Streams groups of objects to a file, which appears when the block ends without an error."""

    def __init__(self, path: Path, info: ResultsInfo, size: tuple[int, int]) -> None:
        extra = {"slide_id": info.slide_id, "mpp": info.mpp}
        self._names, self._size = info.names, size
        self._file = CocoWriter(path, [CocoImage(IMAGE_ID, info.slide_id, *size, extra)], info.names)

    def __enter__(self) -> CocoResults:
        self._file.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, value, trace)

    def add(self, group: Group) -> None:
        """Write one group."""
        objects = group.objects
        has_runs = self._size[0] * self._size[1] <= MAX_PIXELS
        runs = run_lengths(group.shapes, self._size) if has_runs else (None for _ in range(len(group)))
        for i, run in enumerate(runs):
            attributes = {SCORE: str(round(float(objects.score[i]), 6))}
            if objects.flags[i]:
                attributes["flags"] = FLAG_TEXTS[objects.flags[i]]
            found = Annotation(group.object_ids[i], self._names[objects.class_index[i]], group.shapes[i], attributes)
            self._file.add(IMAGE_ID, found, runs=run)
