"""What a compressed tile says of its own size, read from its first bytes before a codec allocates memory for it.

A tile's size is fixed by the slide. A codec believes the header of the data instead: 100 bytes of WebP can ask for a
gigabyte. Deflate, LZW, packbits and Zstandard are decoded into memory of the tile's size and cannot exceed it.
"""

from __future__ import annotations

from collections.abc import Callable

from cytopipe.slides.jpeg_segment import jpeg_frame

JP2_CODESTREAM = b"\xff\x4f\xff\x51"
"""SOC and SIZ (ISO/IEC 15444-1 annex A): every codestream begins so, also inside the boxes of a JP2 file."""
MAX_JP2_TILES = 256
"""[D] OpenJPEG reserves several kB for each of a codestream's own tiles; slides' tiles have one."""


def jpeg2000_size(data: bytes) -> tuple[int, int, int]:
    """Width, height, components. Raises ValueError for what is no codestream or has absurdly many tiles inside."""
    at = data.find(JP2_CODESTREAM)
    if at < 0 or len(data) < at + 42:
        raise ValueError("no JPEG 2000 data")
    x1, y1, x0, y0, tile_w, tile_h, tile_x, tile_y = (
        int.from_bytes(data[at + i : at + i + 4], "big") for i in range(8, 40, 4)
    )
    components = int.from_bytes(data[at + 40 : at + 42], "big")
    if x1 <= x0 or y1 <= y0 or not tile_w or not tile_h:
        raise ValueError("JPEG 2000 data without an area")
    if -(-(x1 - tile_x) // tile_w) * -(-(y1 - tile_y) // tile_h) > MAX_JP2_TILES:
        raise ValueError(f"JPEG 2000 data in more than {MAX_JP2_TILES} tiles of its own")
    return x1 - x0, y1 - y0, components


def webp_size(data: bytes) -> tuple[int, int, int]:
    """Width, height, and 4 for the samples at most. Raises ValueError for what is no WebP.

    Source: WebP container specification; RFC 6386 section 9.1 (VP8); WebP lossless bitstream, section 3 (VP8L).
    """
    kind = data[12:16]
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        raise ValueError("no WebP data")
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little"), 4
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), 4
    if kind == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF, 4
    raise ValueError("WebP data of an unknown kind")


def jpeg_size(data: bytes) -> tuple[int, int, int]:
    """Width, height, components. Raises ValueError as `jpeg_frame`."""
    frame = jpeg_frame(data)
    return frame.width, frame.height, frame.components


SIZE_OF: dict[int, Callable[[bytes], tuple[int, int, int]]] = {
    7: jpeg_size,
    33005: jpeg2000_size,
    34712: jpeg2000_size,
    50001: webp_size,
}
"""By TIFF compression number: those codecs whose output is as large as their own header says."""


def check_size(data: bytes, compression: int, segment_px: tuple[int, int], samples: int) -> None:
    """Raise ValueError where a segment's own header claims more than its place of `segment_px` (w, h) holds."""
    if compression not in SIZE_OF:
        return
    width, height, components = SIZE_OF[compression](data)
    if width > segment_px[0] or height > segment_px[1] or components > max(samples, 4):
        place = f"{segment_px[0]} x {segment_px[1]} px"
        raise ValueError(f"data of {width} x {height} px of {components} samples in a place of {place}")
