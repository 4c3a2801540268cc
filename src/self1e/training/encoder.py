"""First stage of `nano`: the vision encoder learns to see, and to say it in words the language model reads.

Every InternVL starts from an encoder that was trained on pictures and aligned with words; ours starts from
nothing. Asked for masks from the first step, it learns colours and then hardly anything for a long time, because a
colour often answers the query (docs/log.md). So it first says of every spot of the picture what is there: kind,
colour, size and pattern in drawn scenes, where the thing is and how it ranks among its like, the named part in
photographs. It says it twice: through a classifier that is thrown away, and through the projector in the language
model's own word embeddings, which stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from self1e.data.scenes.words import PATTERN_WORDS, SIZE_WORDS
from self1e.model import Self1EForConditionalGeneration
from self1e.model.mask_head import depth_to_space
from self1e.processing.image import Self1EImageProcessor

BACKGROUND_WEIGHT = 0.3
"""Most spots are background, and telling it is easy."""
RANK_WEIGHT = 0.5
"""How much one rank counts, of `RANKS`, beside one attribute."""
PLACE_WEIGHT = 3.0
MOST = 4
"""Ranks and numbers of like things are told apart up to this."""
_IGNORED = -100

_ORDERS: dict[str, Callable[[Thing], float]] = {
    "left": lambda thing: thing.centre_xy[0],
    "top": lambda thing: thing.centre_xy[1],
    "large": lambda thing: -thing.area,
}
RANKS = tuple(f"{like}_{order}" for like in ("kind", "colour") for order in ("count", *_ORDERS))
"""Of each thing, among those of its kind and of its colour: how many, and which one it is from the left, from the
top and from the largest. Superlatives, ordinals and counts are made of these."""


class SpotLabels(Dataset[dict[str, Any]]):
    """Pictures with classes for every spot; item ``i`` is always the same item.

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
        self.images, self.share, self.length, self.spots, self.seed = images, share, length, spots, seed
        names = {"kind": KINDS, "colour": COLOURS, "size": SIZE_WORDS, "pattern": PATTERN_WORDS, "part": parts}
        self._tables = {
            label: {name: number for number, name in enumerate(known, start=1)} for label, known in names.items()
        }

    def __len__(self) -> int:
        return self.length

    def words(self) -> dict[str, tuple[str, ...]]:
        """Per label that has words, the name of each class but the background (class 0), in order."""
        return {label: tuple(table) for label, table in self._tables.items()}

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, 1, index))
        unknown = np.full((self.spots, self.spots), _IGNORED)
        labels = dict.fromkeys((*self._tables, *RANKS), unknown)
        place = np.full((self.spots, self.spots, 2), np.nan, np.float32)
        if self.photographs is not None and rng.random() < self.share:
            sample = self.augment(self.photographs[int(rng.integers(len(self.photographs)))], rng)
            labels["part"] = self._shrink(self._part_map(sample))
        else:
            sample = self.scenes[int(rng.integers(len(self.scenes)))]
            things: Any = sample.extra["things"]
            owner = self._shrink(np.asarray(sample.extra["owner"]))
            for label in ("kind", "colour", "size", "pattern"):
                table = self._tables[label]
                labels[label] = np.array([0, *(table[getattr(thing, label)] for thing in things)])[owner]
            for label, ranks in rank_things(things).items():
                labels[label] = np.array([0, *ranks])[owner]
            centres = [np.divide(thing.centre_xy, sample.image.size) * 2 - 1 for thing in things]
            place = np.array([(np.nan, np.nan), *centres], np.float32)[owner]
        pixels = self.images(sample.image, max_tiles=1)["pixel_values"][0]
        return {
            "pixel_values": pixels,
            "place": torch.from_numpy(place),
            **{name: torch.from_numpy(label.astype(np.int64)) for name, label in labels.items()},
        }

    def _part_map(self, sample: Sample) -> np.ndarray:
        found = np.zeros(sample.image.size[::-1], np.uint8)
        for target in sample.targets:
            if target.tag == "part":
                found[target.mask] = self._tables["part"][target.text]
        return found

    def _shrink(self, labels: np.ndarray) -> np.ndarray:
        size = (self.spots, self.spots)
        return np.asarray(Image.fromarray(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))


def rank_things(things: Sequence[Thing]) -> dict[str, list[int]]:
    """Return `RANKS` of each thing: 1 is the first, or the only one; `MOST` stands for itself and more."""
    ranks: dict[str, list[int]] = {name: [] for name in RANKS}
    for thing in things:
        for like in ("kind", "colour"):
            peers = [other for other in things if getattr(other, like) == getattr(thing, like)]
            ranks[f"{like}_count"].append(min(len(peers), MOST))
            for order, key in _ORDERS.items():
                before = sum(key(other) < key(thing) for other in peers)
                ranks[f"{like}_{order}"].append(min(before + 1, MOST))
    return ranks


class SpotClassifier(nn.Module):
    """Vision encoder, projector and word embeddings of a model, taught to name every spot.

    Args:
        model: Its vision encoder, projector and word embeddings are trained in place.
        words: Per label, the names of its classes but the background, as `SpotLabels.words` gives them.
        token_ids: Turns a word, as it stands inside a sentence, into token ids.
    """

    accepts_loss_kwargs = False

    def __init__(
        self,
        model: Self1EForConditionalGeneration,
        words: Mapping[str, Sequence[str]],
        *,
        token_ids: Callable[[str], Sequence[int]],
    ) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple: the rest of the model is no part of this module
        self.vision_tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.embeddings = model.get_input_embeddings()
        self.side = model.config.patches_per_side
        self.words = {label: tuple(names) for label, names in words.items() if names}
        self.classes = {label: 1 + len(names) for label, names in self.words.items()}
        self.classes |= dict.fromkeys(RANKS, 1 + MOST)
        self.classify = nn.Linear(model.config.vision_config.hidden_size, 4 * (2 + sum(self.classes.values())))
        self._token_ids = {
            label: [torch.tensor(token_ids(name.removeprefix("the "))) for name in names]
            for label, names in self.words.items()
        }
        self.sharpness = nn.Parameter(torch.ones(len(self.words)))
        self.bias = nn.ParameterDict({label: torch.zeros(1 + len(names)) for label, names in self.words.items()})

    def forward(self, pixel_values: Tensor, place: Tensor, **labels: Tensor) -> dict[str, Any]:
        """Classify spots.

        Args:
            pixel_values: ``(B, 3, S, S)``.
            place: Centre of the thing at each spot, -1 to 1 across the picture, ``(B, 2*side, 2*side, 2)``;
                NaN where there is none.
            labels: Per label, int64 ``(B, 2*side, 2*side)``, -100 where unknown; a picture knows a label
                everywhere or nowhere.

        Returns:
            ``loss``, and its parts as ``losses``: ``spots`` and ``words`` are sums of mean cross entropies over the
            labels that some picture of the batch has, ``place`` is the mean distance per coordinate.
        """
        vision = self._model[0].encode_pictures(pixel_values, [(1, 1)] * len(pixel_values))
        assert vision.fine is not None  # the classifier trains models with a fine branch
        losses = {
            **self._spots(vision.patches, place, labels),
            "words": 0.5 * (self._words(vision.coarse, labels) + self._words(vision.fine, labels)),
        }
        return {"loss": torch.stack(list(losses.values())).sum(), "losses": losses}

    def _spots(self, patches: Tensor, place: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Four spots per patch under one linear layer."""
        spots = depth_to_space(self.classify(patches).unflatten(1, (self.side, self.side)), 2).float()
        where, *parts = spots.split([2, *self.classes.values()], dim=-1)
        known = ~place.isnan()
        distance = (where - place.nan_to_num()).abs() * known
        loss = spots.sum() * 0.0
        for label, logits in zip(self.classes, parts, strict=True):
            if (labels[label] != _IGNORED).any():
                weight = self._class_weights(label, logits)
                part = F.cross_entropy(logits.flatten(0, 2), labels[label].flatten(), weight=weight)
                loss = loss + part * (RANK_WEIGHT if label in RANKS else 1.0)
        return {"spots": loss, "place": PLACE_WEIGHT * distance.sum() / known.sum().clamp(min=1)}

    def _words(self, tokens: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        """Projected tokens against the embeddings of words: ``(B, n, D)``; a token's target is the mix of its spots."""
        loss = tokens.sum() * 0.0 + self.sharpness.sum() * 0.0
        side = round(tokens.shape[1] ** 0.5)
        for number, label in enumerate(self.words):
            known = labels[label][:, 0, 0] != _IGNORED
            names = torch.stack([self.embeddings(ids.to(tokens.device)).mean(0) for ids in self._token_ids[label]])
            if not known.any():
                loss = loss + (names.sum() + self.bias[label].sum()) * 0.0  # every process has every gradient
                continue
            scores = self.sharpness[number].exp() * (tokens[known] @ names.to(tokens.dtype).T).float()
            logits = F.pad(scores, (1, 0)) + self.bias[label]
            spots = F.one_hot(labels[label][known], self.classes[label]).float().permute(0, 3, 1, 2)
            target = F.adaptive_avg_pool2d(spots, side).flatten(2).transpose(1, 2)
            weight = self._class_weights(label, logits)
            loss = loss + F.cross_entropy(logits.flatten(0, 1), target.flatten(0, 1), weight=weight)
        return loss

    def _class_weights(self, label: str, logits: Tensor) -> Tensor:
        weight = torch.ones(self.classes[label], device=logits.device)
        weight[0] = BACKGROUND_WEIGHT
        return weight
