"""Clothing Co-Parsing (CCP): street photographs with 58 named parts of clothing and body.

On disk::

    <root>/images/0001.jpg      a photograph
    <root>/masks/0001.png       one class number per pixel, 0 = background
    <root>/classes.txt          "<number> <name>" per line, 0 = null
    <root>/train.txt, val.txt   names of pictures, one per line

Names are bare nouns ("t-shirt"); a query reads "the t-shirt". Four groups are added, because people ask
for them: the person (every named part), the clothes, the footwear, the headwear.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from self1e.data.sample import Sample, Target
from self1e.errors import DatasetError

FOOTWEAR = frozenset(("boots", "clogs", "flats", "heels", "loafers", "pumps", "sandals", "shoes", "sneakers", "wedges"))
HEADWEAR = frozenset({"hat"})
# Worn on the body, but nobody calls them clothes.
_ACCESSORIES = ("accessories", "bag", "bracelet", "earrings", "glasses", "necklace", "purse", "ring")
_NOT_CLOTHES = frozenset((*_ACCESSORIES, "sunglasses", "wallet", "watch", "hair", "skin"))
PERSON = "the person"


class Clothing(Sequence[Sample]):
    """Sample ``i`` is photograph ``i`` of the split with every part that is present, named parts first.

    Each sample's ``extra`` holds ``absent``: names of parts that are not there.
    """

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.root = Path(root)
        listing = self.root / f"{split}.txt"
        if not listing.is_file():
            raise DatasetError(
                f"No {listing.name} in {self.root}; expected the CCP layout (images/, masks/, classes.txt, train.txt, "
                "val.txt). Point --data at the folder that holds ccp/."
            )
        self.split = split
        self.names = listing.read_text("utf-8").split()
        lines = (self.root / "classes.txt").read_text("utf-8").splitlines()
        self.classes = {int(number): name for number, name in (line.split(maxsplit=1) for line in lines)}
        parts = {number: name for number, name in self.classes.items() if number}
        self.groups = {
            PERSON: frozenset(parts),
            "the clothes": frozenset(n for n, name in parts.items() if name not in _NOT_CLOTHES | FOOTWEAR | HEADWEAR),
            "the footwear": frozenset(n for n, name in parts.items() if name in FOOTWEAR),
            "the headwear": frozenset(n for n, name in parts.items() if name in HEADWEAR),
        }

    def __len__(self) -> int:
        return len(self.names)

    def count_parts(self) -> dict[str, int]:
        """Count the photographs of the split in which each named part is seen, by its query."""
        counts = {f"the {name}": 0 for number, name in self.classes.items() if number}
        for name in self.names:
            for number in np.unique(np.asarray(Image.open(self.root / "masks" / f"{name}.png"))).tolist():
                if number:
                    counts[f"the {self.classes[number]}"] += 1
        return counts

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        name = self.names[index]
        image = Image.open(self.root / "images" / f"{name}.jpg").convert("RGB")
        labels = np.asarray(Image.open(self.root / "masks" / f"{name}.png"))
        if labels.shape != image.size[::-1]:
            raise DatasetError(
                f"ccp/{self.split}/{name}: the mask is {labels.shape[1]}x{labels.shape[0]} but the photograph "
                f"{image.width}x{image.height}; they must be the same size."
            )
        present = set(np.unique(labels).tolist()) - {0}
        targets = [
            Target(text=f"the {self.classes[number]}", mask=labels == number, tag="part") for number in sorted(present)
        ]
        for group, numbers in self.groups.items():
            if present & numbers:
                targets.append(Target(text=group, mask=np.isin(labels, sorted(numbers)), tag="group"))
        absent = [f"the {part}" for number, part in self.classes.items() if number and number not in present]
        absent += [group for group, numbers in self.groups.items() if not present & numbers]
        return Sample(
            image=image, targets=tuple(targets), source=f"ccp/{self.split}/{name}", extra={"absent": tuple(absent)}
        )
