"""ReasonSeg: questions whose answer is a region (LISA, arXiv:2308.00692).

On disk, as published (METHOD section 7.1)::

    <root>/reason_seg/ReasonSeg/<train | val | test>/<name>.jpg and <name>.json
        {"text": ["Which thing here can hold water?", ...], "is_sentence": true,
         "shapes": [{"label": "target", "points": [[35.2, 26.0], ...]}, {"label": "ignore", ...}, ...]}
    <root>/reason_seg/ReasonSeg/explanatory/train.json
        [{"image": "<name>.jpg", "query": "What could ...?", "outputs": "In the image, ...", ...}, ...]

Quirks kept, so that numbers compare with published ones:

* large polygons are painted first, so a small target inside a large ignored region survives;
* a label that holds "ignore" marks pixels that do not count, and the label "flag" means nothing;
* the raster is OpenCV's, and a polygon's area is the number of its pixels;
* some files are cp1252, not UTF-8;
* photographs are turned upright by their EXIF: outlines were drawn on them so, and OpenCV, which the published
  evaluation reads with, does it too;
* all texts of a picture share its mask; validation and test ask the first one only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from self1e.data.files import read_json, read_rgb, read_size
from self1e.data.polygons import paint_polygon
from self1e.data.sample import Outline, Question, Sample, Target
from self1e.errors import DatasetError
from self1e.processing.prompts import Kind

IGNORED = 255
"""Value of pixels that do not count, in a painted map."""
EXPLANATORY = "explanatory"

_TEXT_LETTERS = 90
"""Of a question, about."""


class ReasonSeg(Sequence[Sample]):
    """Sample ``i`` is picture ``i`` of the split by name, with one target per text.

    Of the split ``explanatory``, sample ``i`` is explanation ``i`` of the file: its target is the question, and its
    one `Question` is the question with the explanation as answer. Texts are stripped, and keep their capitals.
    """

    def __init__(self, root: str | Path, split: str = "train", *, every_text: bool | None = None) -> None:
        """Find the pictures.

        Args:
            root: Holds ``reason_seg/ReasonSeg/``.
            split: ``train``, ``val``, ``test`` or ``explanatory``, whose pictures are train's.
            every_text: Whether each text of a picture becomes a target, or the first one only; None for what is
                published: each in training.

        Raises:
            DatasetError: Nothing is there.
        """
        folder = Path(root) / "reason_seg" / "ReasonSeg"
        self.split = split
        self.folder = folder / ("train" if split == EXPLANATORY else split)
        self.every_text = split == "train" if every_text is None else every_text
        self.explanations: list[dict[str, Any]] | None = None
        if split == EXPLANATORY:
            self.explanations = _read_explanations(folder / EXPLANATORY / "train.json")
            self.names = [Path(record["image"]).stem for record in self.explanations]
        else:
            self.names = sorted(path.stem for path in self.folder.glob("*.jpg"))
        if not self.names:
            raise DatasetError(
                f"No *.jpg in {self.folder}; expected ReasonSeg's {split}.zip, unpacked into reason_seg/ReasonSeg/."
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        name = self.names[index]
        source = f"reasonseg/{self.split}/{name}"
        image = read_rgb(self.folder / f"{name}.jpg", source, upright=True)
        path = self.folder / f"{name}.json"
        note = read_json(path, "texts and shapes for the picture of the same name", encodings=("utf-8", "cp1252"))
        try:
            labels = paint_shapes(note["shapes"], image.size)
            texts = [str(text).strip() for text in note["text"]]
            kind: Kind = "sentence" if note.get("is_sentence", False) else "phrase"
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DatasetError(
                f"{source}: {path} is malformed at {error!r}; expected the keys text, is_sentence and shapes, and each "
                "shape with label and points [[x, y], ...]."
            ) from error
        questions: tuple[Question, ...] = ()
        if self.explanations is not None:
            record = self.explanations[index]
            texts, kind = [str(record["query"]).strip()], "sentence"
            questions = (Question(text=texts[0], answer=str(record["outputs"]).strip(), tag="explanation"),)
        mask, ignore = labels == 1, labels == IGNORED
        wanted = texts if self.every_text else texts[:1]
        targets = tuple(Target(text=text, mask=mask, kind=kind, tag="reasoning", ignore=ignore) for text in wanted)
        return Sample(image=image, targets=targets, questions=questions, source=source)

    def peek(self, index: int, *, with_size: bool = False) -> Outline:
        """Outline a sample; see `Outline`. Its JSON is not read: there are few, and their texts are alike in length."""
        name = self.names[index]
        path, source = self.folder / f"{name}.jpg", f"reasonseg/{self.split}/{name}"
        size_wh = read_size(path, source, upright=True) if with_size else None
        return Outline(letters=_TEXT_LETTERS, has_mask=True, size_wh=size_wh)


def paint_shapes(shapes: Iterable[Mapping[str, Any]], size_wh: tuple[int, int]) -> np.ndarray:
    """Paint labelled polygons over each other, the largest first.

    Args:
        shapes: Each with ``label`` and ``points``, ``(x, y)`` in pixels.
        size_wh: Of the picture.

    Returns:
        Uint8 ``(H, W)``: 0 background, 1 target, 255 ignored.
    """
    painted = [
        (paint_polygon(shape["points"], size_wh), "ignore" in shape["label"].lower())
        for shape in shapes
        if shape["label"].lower() != "flag"
    ]
    labels = np.zeros(size_wh[::-1], dtype=np.uint8)
    for pixels, ignored in sorted(painted, key=lambda one: np.count_nonzero(one[0]), reverse=True):
        labels[pixels] = IGNORED if ignored else 1
    return labels


def _read_explanations(path: Path) -> list[dict[str, Any]]:
    expected = "ReasonSeg's explanations, a list of records with image, query and outputs"
    records = read_json(path, expected, encodings=("utf-8", "cp1252"))
    keys = {"image", "query", "outputs"}
    if not isinstance(records, list) or any(not isinstance(one, dict) or keys - one.keys() for one in records):
        raise DatasetError(f"{path} does not hold what was expected: {expected}.")
    return records
