"""The images of one slide as files: Y/X.jpg or Y/X.png below the slide's folder (`places.TilePlaces`)."""

from __future__ import annotations

from pathlib import Path

from cytopipe.core.files import fsync_path
from cytopipe.tiles.places import TilePlaces
from cytopipe.tiles.sinks import Behind, disk, flush

# measured on a local SSD (ext4): a JPEG of 0.2 MB takes 0.35 ms to write and 0.4 to 0.6 ms to flush, so that one
# thread would do. [D] four, since on a hard disk or over a network a flush takes 10 ms, whatever else goes on
FLUSHING_THREADS = 4


class ImageFiles:
    """An `ImageSink` that fills a folder, which exists and is empty."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self._folder, self._suffix = folder, suffix
        self._places, self._made = TilePlaces(), {folder}
        self._behind = Behind(FLUSHING_THREADS)

    def add(self, x: int, y: int, image: bytes) -> str:
        """Write the image behind the caller; returns its path below the folder."""
        place = self._places.place(x, y, self._suffix)
        path = self._folder / place
        self._make(path.parent)
        self._behind.put(_write, path, image)
        return place

    def finish(self) -> None:
        """Wait for the files, and flush the folders that name them."""
        self._behind.finish()
        for folder in sorted(self._made):
            self._behind.put(flush, folder)
        self._behind.finish()

    def close(self) -> None:
        """Stop writing."""
        self._behind.close()

    def _make(self, folder: Path) -> None:
        if folder not in self._made:
            self._make(folder.parent)
            with disk(folder):
                folder.mkdir()
            self._made.add(folder)


def _write(path: Path, image: bytes) -> None:
    with disk(path):
        path.write_bytes(image)
        fsync_path(path)
