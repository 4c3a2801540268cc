"""Arrays in MATLAB's files of level 5, as Pascal Context is published: no SciPy for one array of class numbers.

A file is a header of 128 bytes, the last two of which tell the byte order, and elements: type and size in four bytes
each (both in four bytes if the data fit in the other four), then data. A compressed element holds another element; a
matrix holds its kind, its sizes, its name and its values, column by column, in any numeric type that has room for them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from self1e.errors import DatasetError

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_KINDS = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x0800


def read_mat(path: Path, name: str) -> np.ndarray:
    """Read one numeric array by its name.

    Args:
        path: Of the file.
        name: Of the array.

    Returns:
        The array with its own dtype and shape.

    Raises:
        DatasetError: The file is missing, of another kind (level 4 or 7.3) or damaged, or has no such array of numbers.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error}); expected a MATLAB file with {name}.") from error
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None or content[:20].startswith(b"MATLAB 7.3"):
        raise DatasetError(f"{path} is no MATLAB file of level 5 (it begins with {content[:10]!r}); download it anew.")
    found: list[str] = []
    try:
        for kind, data in _elements(content[_HEADER:], order):
            if kind == _MATRIX:
                label, array = _matrix(data, order)
                if label == name and array is not None:
                    return array
                found.append(label)
    except (struct.error, zlib.error, ValueError, KeyError, IndexError) as error:
        raise DatasetError(f"{path} is damaged ({type(error).__name__}: {error}); download it anew.") from error
    raise DatasetError(f"{path} holds {', '.join(found) or 'nothing'}, expected an array of numbers {name!r}.")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Go through elements; compressed ones are opened."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}2I", data, at)
        if kind >> 16:
            kind, size = kind & 0xFFFF, kind >> 16
            start, end = at + 4, at + 8
        else:
            start = at + 8
            end = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > len(data):
            raise ValueError(f"an element of {size} bytes is cut off")
        inside = data[start : start + size]
        if kind == _COMPRESSED:
            yield from _elements(zlib.decompress(inside), order)
        else:
            yield kind, inside
        at = end


def _matrix(data: bytes, order: str) -> tuple[str, np.ndarray | None]:
    """Name and values of a matrix; no values if they are no real numbers."""
    (_, flags), (_, sizes), (_, name), *rest = _elements(data, order)
    label = name.decode("ascii", "replace")
    told = struct.unpack_from(f"{order}I", flags)[0]
    if told & 0xFF not in _KINDS or told & _COMPLEX or not rest:
        return label, None
    stored, values = rest[0]
    shape = np.frombuffer(sizes, f"{order}i4")
    numbers = np.frombuffer(values, order + _STORED[stored])
    return label, numbers.reshape(tuple(shape), order="F").astype(_KINDS[told & 0xFF])
