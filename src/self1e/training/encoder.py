"""First stage of `nano`: the vision encoder learns to see before the language model asks it anything.

Every InternVL starts from an encoder that was trained on pictures; ours starts from nothing. Asked for masks
from the first step, it learns colours and then hardly anything for a long time, because a colour often answers
the query (docs/log.md). So it first says of every spot of the picture what is there: kind, colour and pattern
in drawn scenes, the named part in photographs. The classifier on top is thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from self1e.data.mixture import Augment
from self1e.data.sample import Sample
from self1e.data.scenes import COLOURS, KINDS, Thing
from self1e.data.scenes.words import PATTERN_WORDS
from self1e.model.mask_head import depth_to_space
from self1e.processing.image import Self1EImageProcessor

BACKGROUND_WEIGHT = 0.3
"""Most spots are background, and telling it is easy."""
_IGNORED = -100


class SpotLabels(Dataset[dict[str, Any]]):
    """Pictures with a class for every spot; item ``i`` is always the same item.

    Args:
        scenes: Drawn scenes.
        photographs: Photographs whose targets tagged "part" are named in ``parts``; or None.
        augment: For photographs.
        parts: Names of parts, as the targets spell them.
        images: Makes tiles.
        share: Of photographs.
        length: Items in all.
        spots: Spots per side of a picture.
        seed: Another seed is another order.
    """

    def __init__(
        self,
        scenes: Sequence[Sample],
        photographs: Sequence[Sample] | None,
        *,
        augment: Augment,
        parts: Sequence[str],
        images: Self1EImageProcessor,
        share: float,
        length: int,
        spots: int,
        seed: int,
    ) -> None:
        self.scenes, self.photographs, self.augment = scenes, photographs, augment
        self.parts = {name: number for number, name in enumerate(parts, start=1)}
        self.images, self.share, self.length, self.spots, self.seed = images, share, length, spots, seed
        self._kinds = {name: number for number, name in enumerate(KINDS, start=1)}
        self._colours = {name: number for number, name in enumerate(COLOURS, start=1)}
        self._patterns = {name: number for number, name in enumerate(PATTERN_WORDS, start=1)}

    def __len__(self) -> int:
        return self.length

    def classes(self) -> dict[str, int]:
        """Number of classes of each label, background included."""
        tables = {"kind": self._kinds, "colour": self._colours, "pattern": self._patterns, "part": self.parts}
        return {name: len(table) + 1 for name, table in tables.items()}

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, 1, index))
        unknown = np.full((self.spots, self.spots), _IGNORED)
        labels = dict.fromkeys(("kind", "colour", "pattern", "part"), unknown)
        if self.photographs is not None and rng.random() < self.share:
            sample = self.augment(self.photographs[int(rng.integers(len(self.photographs)))], rng)
            labels["part"] = self._shrink(self._part_map(sample))
        else:
            sample = self.scenes[int(rng.integers(len(self.scenes)))]
            things: Any = sample.extra["things"]
            owner = self._shrink(np.asarray(sample.extra["owner"]))
            labels["kind"] = self._look_up(owner, things, "kind", self._kinds)
            labels["colour"] = self._look_up(owner, things, "colour", self._colours)
            labels["pattern"] = self._look_up(owner, things, "pattern", self._patterns)
        pixels = self.images(sample.image, max_tiles=1)["pixel_values"][0]
        return {
            "pixel_values": pixels,
            **{name: torch.from_numpy(label.astype(np.int64)) for name, label in labels.items()},
        }

    def _part_map(self, sample: Sample) -> np.ndarray:
        found = np.zeros(sample.image.size[::-1], np.uint8)
        for target in sample.targets:
            if target.tag == "part":
                found[target.mask] = self.parts[target.text]
        return found

    def _shrink(self, labels: np.ndarray) -> np.ndarray:
        size = (self.spots, self.spots)
        return np.asarray(Image.fromarray(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))

    @staticmethod
    def _look_up(owner: np.ndarray, things: Sequence[Thing], name: str, table: Mapping[str, int]) -> np.ndarray:
        numbers = np.array([0, *(table[getattr(thing, name)] for thing in things)])
        return numbers[owner]


class SpotClassifier(nn.Module):
    """The vision encoder under one linear layer, four spots per patch.

    Args:
        vision_tower: Is trained in place.
        classes: Number of classes per label.
        side: Patches per side.
    """

    accepts_loss_kwargs = False

    def __init__(self, vision_tower: nn.Module, classes: Mapping[str, int], *, width: int, side: int) -> None:
        super().__init__()
        self.vision_tower = vision_tower
        self.classes = dict(classes)
        self.side = side
        self.classify = nn.Linear(width, 4 * sum(self.classes.values()))

    def forward(self, pixel_values: Tensor, **labels: Tensor) -> dict[str, Tensor]:
        """Classify spots.

        Args:
            pixel_values: ``(B, 3, S, S)``.
            labels: Per label, int64 ``(B, 2*side, 2*side)``, -100 where unknown.

        Returns:
            ``loss``: the mean cross entropy of the labels that some picture of the batch has.
        """
        patches = self.vision_tower(pixel_values=pixel_values).last_hidden_state[:, 1:]
        spots = depth_to_space(self.classify(patches).unflatten(1, (self.side, self.side)), 2)
        loss = spots.sum() * 0.0
        for name, logits in zip(self.classes, spots.float().split(list(self.classes.values()), dim=-1), strict=True):
            if (labels[name] != _IGNORED).any():
                weight = torch.ones(self.classes[name], device=logits.device)
                weight[0] = BACKGROUND_WEIGHT
                loss = loss + F.cross_entropy(logits.flatten(0, 2), labels[name].flatten(), weight=weight)
        return {"loss": loss}
