"""Pixels in every notation that people's annotations have: polygons, run-length codes, mask files, brush strokes.

Nothing is decoded before ``decode``, and whatever is wrong then is a `Flaw`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle_codec

from self1e.data.own.records import Flaw, Region, SizeWH, as_size, exists, find_file, is_number, shown, times
from self1e.errors import DatasetError, SettingError
from self1e.processing.pictures import MAX_PIXELS, decoding
from self1e.structures import decode_rle

MASK_FORMATS = ("PNG", "TIFF", "BMP", "GIF")
"""What a mask file may be: formats that keep every pixel as it was."""

_LOSSY = ("JPEG", "MPO", "WEBP", "PPM")
"""Formats that are recognised, to say what is wrong."""

_FARTHEST = 1.0
"""How far outside a picture a polygon's point may lie, in widths and heights: drawing past the edge is common."""
_RINGS = "[[x1, y1, x2, y2, x3, y3, ...], ...] in pixels"


@dataclass(frozen=True, slots=True)
class Polygons:
    """Polygons as JSON has them: flat lists as in COCO, or lists of points; filled by pycocotools, united."""

    rings: Any

    def decode(self, size_wh: SizeWH) -> np.ndarray:
        """Fill and unite, bool ``(H, W)``."""
        width, height = size_wh
        rings = _flat_rings(self.rings)
        _check_places(rings, size_wh)
        codec: Any = rle_codec  # its stubs know less than it accepts
        return decode_rle(codec.merge(codec.frPyObjects(rings, height, width)))


@dataclass(frozen=True, slots=True)
class PercentPolygon:
    """One polygon whose points are in percent of width and height (Label Studio)."""

    points: Any

    def decode(self, size_wh: SizeWH) -> np.ndarray:
        """Fill, bool ``(H, W)``."""
        ring = _flat_rings(self.points)[0]
        sides = (size_wh[0] / 100, size_wh[1] / 100)
        return Polygons([[value * sides[i % 2] for i, value in enumerate(ring)]]).decode(size_wh)


@dataclass(frozen=True, slots=True)
class RunLengths:
    """A run-length code as COCO has it, compressed or not: ``{"size": [H, W], "counts": str | list}``."""

    code: Any

    def decode(self, size_wh: SizeWH) -> np.ndarray:
        """Decode, bool ``(H, W)``."""
        width, height = size_wh
        size, counts = (self.code.get("size"), self.code.get("counts")) if isinstance(self.code, dict) else (None, None)
        if not (isinstance(size, list) and len(size) == 2 and as_size(*size)) or not isinstance(counts, str | list):
            raise Flaw("bad-mask", shown(self.code), '{"size": [height, width], "counts": "..."}', "Write it so.")
        if [int(side) for side in size] != [height, width]:
            hint = " (it may be [width, height])" if size == [width, height] else ""
            raise Flaw(
                "size-differs",
                f"a run-length code of size {size}{hint}",
                f"[{height}, {width}], the picture's [height, width]",
                "Scale mask and picture alike.",
            )
        try:
            if isinstance(counts, str):
                return decode_rle({"size": [height, width], "counts": counts.encode("ascii")})
            return _from_runs(counts, height, width)
        # Damaged codes fail in many ways, the memory for an impossible run among them.
        except (SettingError, ValueError, IndexError, OverflowError, MemoryError, TypeError) as error:
            told = " ".join(str(error).split()).rstrip(".")[:120] or type(error).__name__
            raise Flaw(
                "bad-mask",
                f"a run-length code that cannot be decoded ({told})",
                f"runs of {height * width} pixels in all, column by column",
                "Encode the mask again, e.g. with pycocotools.",
            ) from error


@dataclass(frozen=True, slots=True)
class MaskFile:
    """A picture file as a mask: everything but 0, or the pixels of one value."""

    path: Path
    value: int | None = None

    def decode(self, size_wh: SizeWH) -> np.ndarray:
        """Read, bool ``(H, W)``."""
        pixels = read_map(self.path, size_wh, binary=self.value is None)
        if self.value is not None:
            return pixels == self.value
        values = np.unique(pixels)
        if len(values) > 2 or (len(values) == 2 and values[0] != 0):
            raise Flaw(
                "bad-mask",
                f"{self.path.name} holds {len(values)} values ({', '.join(map(str, values[:5].tolist()))} ...)",
                "0 for background and one other value",
                'Save it without smoothing, or choose a value: {"file": ..., "value": ...}.',
            )
        return pixels != 0


@dataclass(frozen=True, slots=True)
class Brush:
    """A brush stroke of Label Studio: the run-length packing of RGBA pixels, of which alpha is the mask."""

    code: Any
    size_wh: SizeWH

    def decode(self, size_wh: SizeWH) -> np.ndarray:
        """Unpack, bool ``(H, W)``."""
        width, height = self.size_wh
        if self.size_wh != size_wh:
            raise Flaw(
                "size-differs", f"a brush stroke on {times(self.size_wh)}", times(size_wh), "Use the annotated picture."
            )
        try:
            values = unpack_brush(np.array(self.code, dtype=np.uint8), 4 * width * height)
        except (ValueError, TypeError, OverflowError, DatasetError) as error:
            raise Flaw(
                "bad-mask",
                f"brush codes that cannot be unpacked ({str(error).rstrip('.')[:120]})",
                f"{4 * width * height} values, RGBA of {times(size_wh)}",
                "Export the task again.",
            ) from error
        return values.reshape(height, width, 4)[..., 3] > 0


def parse_mask(value: Any, folder: Path) -> tuple[Region, ...]:
    """Turn what stands at ``mask`` into regions to unite; their pixels are looked at when they are decoded.

    Args:
        value: Path, run-length code, polygons, or a list of these.
        folder: What paths are relative to.

    Raises:
        Flaw: It is none of them.
    """
    if isinstance(value, str) and value.strip():
        return (MaskFile(find_file(folder, value)),)
    if isinstance(value, dict) and "counts" in value:
        return (RunLengths(value),)
    if isinstance(value, dict) and isinstance(value.get("file"), str):
        number = value.get("value")
        if number is not None and not (isinstance(number, int) and not isinstance(number, bool)):
            raise Flaw("bad-mask", f"value {shown(number)}", "a whole number", "Name the mask's pixel value.")
        return (MaskFile(find_file(folder, value["file"]), number),)
    if isinstance(value, list) and value:
        if any(isinstance(part, str | dict) for part in value):
            return tuple(chain.from_iterable(parse_mask(part, folder) for part in value))
        return (Polygons(value),)
    if isinstance(value, list):
        raise Flaw("empty-mask", "an empty list", "a mask, or null", "Write null if it is not in the picture.")
    expected = "a path, a run-length code, polygons, a list of these, or null"
    raise Flaw("bad-mask", shown(value), expected, "Write one of them.")


def read_map(path: Path, size_wh: SizeWH, *, colour: bool = False, binary: bool = False) -> np.ndarray:
    """Read the numbers of a mask file as they are stored: class numbers, grey levels, palette indices.

    Args:
        path: The file.
        size_wh: The picture's size, which the map must have.
        colour: Each number is red + 256 green + 65536 blue, as in COCO's panoptic maps.
        binary: 0 is going to be the background: a palette that shows it otherwise is refused.

    Returns:
        Integers ``(H, W)``.

    Raises:
        Flaw: It is missing, damaged, of another size, or of a kind that does not keep numbers.
    """
    if not exists(path):
        raise Flaw("missing-file", f"no mask {path}", "a PNG", "Add it, or correct the path.")
    advice = "Save the mask as PNG with one number per pixel."
    try:
        with decoding(str(path), MAX_PIXELS), Image.open(path, formats=(*MASK_FORMATS, *_LOSSY)) as image:
            kind, found_wh, bands = image.format, image.size, image.getbands()
            # Nothing is decoded that is not of the picture's size, which is within the limits.
            is_sound = kind in MASK_FORMATS and found_wh == size_wh
            pixels = np.asarray(image if is_sound else [])
            palette = image.getpalette() if image.mode == "P" else None
    except (DatasetError, ValueError, OSError) as error:
        told = str(error).removeprefix(f"{path}: ").split(". ")[0].rstrip(".")
        raise Flaw("bad-mask", f"{path.name} {told}", "a PNG that can be decoded", advice) from error
    if kind not in MASK_FORMATS:
        raise Flaw("bad-mask", f"{path.name} is {kind}", "PNG, which keeps every pixel's value", advice)
    if found_wh != size_wh:
        raise Flaw(
            "size-differs",
            f"the mask {path.name} is {times(found_wh)}",
            f"{times(size_wh)} like its picture",
            "Scale the mask without smoothing (nearest neighbour), or use the picture that it was drawn on.",
        )
    if colour:
        if pixels.ndim != 3 or pixels.shape[2] < 3:
            raise Flaw("bad-mask", f"{path.name} has bands {'+'.join(bands)}", "RGB, as panoptic maps have", advice)
        return pixels[..., 0] + 256 * pixels[..., 1].astype(np.int64) + 65536 * pixels[..., 2].astype(np.int64)
    if pixels.ndim == 3:
        grey = pixels[..., 0]
        colours = pixels[..., 1 : 3 if pixels.shape[2] > 2 else 1]
        alpha = pixels[..., -1] if pixels.shape[2] in (2, 4) else np.full_like(grey, 255)
        if (colours != grey[..., None]).any() or (alpha != alpha.flat[0]).any():
            raise Flaw("bad-mask", f"{path.name} has bands {'+'.join(bands)}", "grey levels or a palette", advice)
        return grey
    if binary and palette:
        _check_palette(palette, pixels, path.name)
    if pixels.dtype.kind not in "bui":
        raise Flaw("bad-mask", f"{path.name} holds {pixels.dtype} numbers", "whole numbers", advice)
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels


def _check_palette(palette: list[int], pixels: np.ndarray, name: str) -> None:
    """Refuse a mask that a person sees the other way round: programs that save few colours number them as they like."""
    colours = np.array(palette).reshape(-1, 3)
    black = [number for number in np.unique(pixels).tolist() if number < len(colours) and not colours[number].any()]
    if colours[0].any() and black:
        raise Flaw(
            "bad-mask",
            f"{name} shows number {black[0]} in black and 0, the background, in another colour",
            "a palette that begins with black, or none",
            'Save it as grey levels, or say which number is the thing: {"file": ..., "value": 0}.',
        )


def unpack_brush(code: np.ndarray, count: int) -> np.ndarray:
    """Unpack the run-length packing of Label Studio's brush, a bit stream.

    It begins with the number of values (32 bits), their width - 1 (5 bits) and four lengths - 1 (4 bits each).
    Then blocks follow: one bit, 1 if one value is repeated and 0 if different ones follow; two bits that choose
    a length; in so many bits the number of values - 1; the value, or the values.

    Args:
        code: Bytes, uint8 ``(B,)``.
        count: How many values there must be: a damaged count is not believed.

    Returns:
        Values, uint8 ``(count,)``.
    """
    bits = np.unpackbits(code)
    weights = 1 << np.arange(31, -1, -1, dtype=np.int64)
    place = 0

    def read(length: int) -> int:
        nonlocal place
        if place + length > len(bits):
            raise DatasetError(f"the code ends after {len(bits)} bits")
        place += length
        return int(bits[place - length : place] @ weights[32 - length :])

    found = read(32)
    if found != count:
        raise DatasetError(f"the code says {found} values")
    width = read(5) + 1
    if width > 8:
        raise DatasetError(f"the code says {width} bits per value")
    lengths = [read(4) + 1 for _ in range(4)]
    values = np.zeros(count, dtype=np.uint8)
    filled = 0
    while filled < count:
        is_run = read(1)
        end = filled + 1 + read(lengths[read(2)])
        if end > count:
            raise DatasetError(f"a run ends at {end}")
        if is_run:
            values[filled:end] = read(width)
        else:
            size = (end - filled) * width
            if place + size > len(bits):
                raise DatasetError(f"the code ends after {len(bits)} bits")
            values[filled:end] = bits[place : place + size].reshape(-1, width) @ weights[32 - width :]
            place += size
        filled = end
    return values


def _from_runs(counts: list[Any], height: int, width: int) -> np.ndarray:
    """Decode uncompressed counts, background first."""
    runs = [int(run) for run in counts if is_number(run) and run >= 0 and run == int(run)]
    if len(runs) != len(counts):
        raise ValueError("counts must be whole numbers from 0 on")
    if sum(runs) != height * width:
        raise ValueError(f"the runs sum up to {sum(runs)}")
    column_major = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(column_major.reshape(width, height).T)


def _flat_rings(rings: Any) -> list[list[float]]:
    """Bring polygons to flat lists of at least three points."""
    if not isinstance(rings, list) or not rings:
        raise Flaw("bad-polygon", shown(rings), _RINGS, "Write the outline so.")
    if all(is_number(value) for value in rings) or all(_is_point(part) for part in rings):
        rings = [rings]  # a single polygon, without the list around it
    return [_flat_ring(ring) for ring in rings]


def _flat_ring(ring: Any) -> list[float]:
    if isinstance(ring, list) and ring and all(_is_point(part) for part in ring):
        ring = list(chain.from_iterable(ring))
    if not isinstance(ring, list) or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in ring):
        raise Flaw("bad-polygon", f"a polygon {shown(ring)}", _RINGS, "Write the outline so.")
    if not all(is_number(value) for value in ring):
        raise Flaw("bad-polygon", "a coordinate that is not finite", "numbers", "Draw the polygon again.")
    if len(ring) % 2:
        raise Flaw("bad-polygon", f"{len(ring)} coordinates", "pairs of x and y", "Complete the last point.")
    if len(ring) < 6:
        raise Flaw("bad-polygon", f"{len(ring) // 2} points", "at least 3", "Draw the polygon again, or take it out.")
    return ring


def _is_point(part: Any) -> bool:
    return isinstance(part, list) and len(part) == 2 and all(is_number(value) for value in part)


def _check_places(rings: list[list[float]], size_wh: SizeWH) -> None:
    """Refuse polygons that cannot be meant: pycocotools would walk along edges of any length, point by point."""
    width, height = size_wh
    for ring in rings:
        x, y = ring[::2], ring[1::2]
        for value, side, axis in chain(((v, width, "x") for v in x), ((v, height, "y") for v in y)):
            if not -_FARTHEST * side <= value <= (1 + _FARTHEST) * side:
                raise Flaw(
                    "bad-polygon",
                    f"a point at {axis}={value:g}",
                    f"points within the picture, {times(size_wh)}",
                    "Is it another picture's polygon, or one of the picture at another size?",
                )
        if max(map(math.fabs, ring)) <= 1 and min(size_wh) > 8:
            raise Flaw(
                "bad-polygon",
                "a polygon with coordinates between 0 and 1",
                f"pixels of {times(size_wh)}",
                "If they are relative to the picture's sides, multiply by width and height.",
            )
