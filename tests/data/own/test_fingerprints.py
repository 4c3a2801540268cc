"""Perceptual hash: what it finds, what it keeps apart, and that buckets miss nothing."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from self1e.data.own.fingerprints import (
    COLOUR_THRESHOLD,
    THRESHOLD,
    Fingerprint,
    find_pairs,
    fingerprint,
    perceptual_hash,
)


def blocks(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((200, 150), Image.Resampling.BICUBIC)


def distance(a: int, b: int) -> int:
    return (a ^ b).bit_count()


@pytest.mark.parametrize("seed", range(4))
def test_compressing_scaling_and_brightening_change_few_bits(seed):
    image = blocks(seed)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    original = perceptual_hash(image)
    assert distance(original, perceptual_hash(Image.open(file))) <= THRESHOLD
    assert distance(original, perceptual_hash(image.resize((97, 64)))) <= THRESHOLD
    assert distance(original, perceptual_hash(image.point(lambda value: value * 0.8 + 20))) <= THRESHOLD


def test_other_pictures_differ_in_many_bits():
    hashes = [perceptual_hash(blocks(seed)) for seed in range(12)]
    assert min(distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > 2 * THRESHOLD


def test_half_of_the_bits_are_set():
    assert all(perceptual_hash(blocks(seed)).bit_count() == 32 for seed in range(5))


def test_one_layout_in_other_colours_is_another_picture(tmp_path):
    image = blocks(0)
    red, green, blue = image.split()
    other = Image.merge("RGB", (blue, green, red))
    for number, one in enumerate((image, other)):
        one.save(tmp_path / f"{number}.png")
    found = [fingerprint(tmp_path / f"{n}.png", one) for n, one in enumerate((image, other))]
    same_layout = [Fingerprint(one.digest, 0, one.thumbnail) for one in found]
    assert list(find_pairs(same_layout)) == []


def test_pairs_are_those_of_comparing_all():
    rng = np.random.default_rng(1)
    centres = rng.integers(0, 2**63, 12)
    prints = []
    for number in range(150):
        bits = int(centres[number % 12])
        for flip in rng.choice(64, int(rng.integers(0, 7)), replace=False):
            bits ^= 1 << int(flip)
        level = int(rng.integers(100, 112))
        prints.append(Fingerprint(f"{number % 140}", bits, bytes([level]) * 192))
    expected = {}
    for j, one in enumerate(prints):
        for i, other in enumerate(prints[:j]):
            if one.digest == other.digest:
                expected[j] = (i, j, True)
                break
        else:
            firsts = [
                i
                for i, other in enumerate(prints[:j])
                if distance(one.bits, other.bits) <= THRESHOLD
                and abs(one.thumbnail[0] - other.thumbnail[0]) <= COLOUR_THRESHOLD
                and i < 140  # later ones are copies of earlier files
            ]
            if firsts:
                expected[j] = (firsts[0], j, False)
    found = list(find_pairs(prints))
    assert found == list(expected.values())
    assert any(equal for _, _, equal in found)
    assert any(not equal for _, _, equal in found)


def test_nothing_is_paired_with_nothing():
    assert list(find_pairs([])) == []
    assert list(find_pairs([Fingerprint("a", 1, b"\0" * 192)])) == []
