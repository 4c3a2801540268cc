"""Find one picture twice: the same bytes, or the same view scaled or compressed anew.

The perceptual hash is the classical one: grey, 32 x 32, the 64 lowest frequencies of the cosine transform except the
mean, each above or below their median. Two pictures are taken for one if at most `THRESHOLD` of 64 bits differ and
their 8 x 8 thumbnails differ by at most `COLOUR_THRESHOLD` levels on average: the second keeps apart what has one
layout and other colours, and flat pictures, whose frequencies are noise. Cut, mirrored or turned copies are not found.

Measured on 466 photographs (COCO's and street fashion): every fifth saved anew, as JPEG of quality 20 to 90 and scaled
by 0.33 to 1.5, differs from itself by at most 6 bits and 3.1 levels; of the 108,345 pairs of different photographs none
differs by less than 12 bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

THRESHOLD = 6
"""Bits of 64."""
COLOUR_THRESHOLD = 8.0
"""Grey levels of 255, mean over 8 x 8 pixels and three channels."""

_SIDE, _LOW = 32, 8
_BANDS = 8  # of 8 bits: with at most 6 bits wrong at least two bands are right, so none is missed


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is kept of a picture."""

    digest: str
    """SHA-256 of the file."""
    bits: int
    """Perceptual hash, 64 bits."""
    thumbnail: bytes
    """RGB, 8 x 8."""


def fingerprint(path: Path, image: Image.Image) -> Fingerprint:
    """Hash a file and the RGB picture that is in it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=2)
    thumbnail = small.resize((_LOW, _LOW), Image.Resampling.BOX).tobytes()
    return Fingerprint(digest, perceptual_hash(small), thumbnail)


def perceptual_hash(image: Image.Image) -> int:
    """Hash what a picture looks like: 64 bits, of which few change when it is scaled or compressed."""
    grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    places = np.arange(_SIDE)
    cosines = np.cos(np.pi / _SIDE * np.outer(np.arange(_LOW + 1), places + 0.5))  # (9, 32)
    spectrum = cosines @ np.asarray(grey, dtype=np.float64) @ cosines.T  # (9, 9)
    # The mean says nothing of the layout: in its place comes the next frequency along the diagonal.
    low = np.append(spectrum[:_LOW, :_LOW].ravel()[1:], spectrum[_LOW, _LOW])
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def find_pairs(fingerprints: Sequence[Fingerprint]) -> Iterator[tuple[int, int, bool]]:
    """Find pictures that are one.

    Yields:
        Two indices ``i < j``, ordered by ``j``, and whether the files are equal. A picture that equals several
        before it is paired with the first of them.
    """
    firsts: dict[str, int] = {}
    different = [j for j, one in enumerate(fingerprints) if firsts.setdefault(one.digest, j) == j]
    similar = _first_similar([fingerprints[j] for j in different])
    similar_to = {different[j]: different[i] for j, i in similar.items()}
    for j, one in enumerate(fingerprints):
        if firsts[one.digest] != j:
            yield firsts[one.digest], j, True
        elif j in similar_to:
            yield similar_to[j], j, False


def _first_similar(fingerprints: Sequence[Fingerprint]) -> dict[int, int]:
    """Return, by its number, the first picture before it within both thresholds.

    Only pictures that share a band of bits are compared.
    """
    if len(fingerprints) < 2:
        return {}
    words = np.array([one.bits for one in fingerprints], dtype=np.uint64)
    hashes = words.astype(">u8").view(np.uint8).reshape(-1, _BANDS)
    thumbnails = np.frombuffer(b"".join(one.thumbnail for one in fingerprints), dtype=np.uint8)
    thumbnails = thumbnails.reshape(len(fingerprints), -1).astype(np.int16)
    set_bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)  # (256,)
    firsts = np.arange(len(fingerprints))
    for band in range(_BANDS):
        order = np.argsort(hashes[:, band], kind="stable")  # within a bucket by number
        for bucket in np.split(order, np.flatnonzero(np.diff(hashes[order, band])) + 1):
            for place, i in enumerate(bucket[:-1].tolist()):
                others = bucket[place + 1 :]
                others = others[set_bits[hashes[others] ^ hashes[i]].sum(axis=1) <= THRESHOLD]
                others = others[np.abs(thumbnails[others] - thumbnails[i]).mean(axis=1) <= COLOUR_THRESHOLD]
                firsts[others] = np.minimum(firsts[others], i)
    return {j: int(i) for j, i in enumerate(firsts) if i < j}
