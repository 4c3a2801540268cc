"""Keep the photographs of a small data set in memory, shrunk and packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from self1e.data.sample import Sample


@dataclass(frozen=True)
class _Packed:
    pixels: np.ndarray
    masks: tuple[np.ndarray, ...]
    sample: Sample
    """Text, tags and source; its pictures are the arrays above."""


class CachedSamples(Sequence[Sample]):
    """Samples shrunk once and kept: decoding a photograph costs more than a small model's step on it.

    Args:
        samples: Any data set.
        side: The longer side of kept pictures, pixels. Masks follow (nearest) and are kept packed, eight
            pixels a byte.
    """

    def __init__(self, samples: Sequence[Sample], *, side: int = 256) -> None:
        self.samples = samples
        self.side = side
        self._kept: dict[int, _Packed] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        if index not in self._kept:
            self._kept[index] = self._pack(self.samples[index])
        kept = self._kept[index]
        height, width = kept.pixels.shape[:2]
        targets = tuple(
            replace(target, mask=np.unpackbits(mask, count=height * width).reshape(height, width).astype(bool))
            for target, mask in zip(kept.sample.targets, kept.masks, strict=True)
        )
        return replace(kept.sample, image=Image.fromarray(kept.pixels), targets=targets)

    def _pack(self, sample: Sample) -> _Packed:
        width, height = sample.image.size
        scale = min(1.0, self.side / max(width, height))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        masks = tuple(
            np.packbits(np.asarray(Image.fromarray(target.mask).resize(size, Image.Resampling.NEAREST)))
            for target in sample.targets
        )
        pixels = np.asarray(sample.image.resize(size, Image.Resampling.BICUBIC))
        bare = tuple(replace(target, mask=np.zeros((0, 0), bool)) for target in sample.targets)
        return _Packed(pixels, masks, replace(sample, image=Image.new("RGB", (1, 1)), targets=bare))
