"""Semantic maps: one query per class, and every pixel belongs to the class whose logit is highest.

    found = model.semantic("street.jpg", ["road", "car", "person"])
    found.save("out", "street")

Benchmarks of class maps (`self1e.evaluation`) ask and compare with the same two functions, without a background.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from self1e.drawing import distinct_colors
from self1e.errors import PromptError, SettingError
from self1e.files import atomic_write_all
from self1e.indexed import index_dtype, indexed_png

if TYPE_CHECKING:
    from torch import Tensor

CLASSES_AT_ONCE = 32
"""Classes whose logits wait together. Within them, passes are as large as free memory allows."""
_MOST_LETTERS = 60  # of a name in a legend


@dataclass(frozen=True, eq=False)
class SemanticMap:
    """One picture's classes."""

    labels: np.ndarray = field(repr=False)
    """``(H, W)``: 0 is background, ``k + 1`` is class ``k``. uint8, or uint16 for more than 254 classes: in 8 bits 255
    stays free, because many programs ignore it."""
    classes: tuple[str, ...]
    """As they were asked, C of them."""
    scores: np.ndarray
    """Float32 ``(C,)`` in 0..1: mean sigmoid over the pixels of each class, 0 for one that has none."""
    background: float | None = 0.0
    """Pixels whose highest logit is not above it belong to no class; None if there is no background."""
    image: Image.Image | None = field(default=None, repr=False)
    """The upright RGB picture; ``overlay`` needs it."""
    source: str = ""
    palette: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.uint8), repr=False)
    """Colour of each label, uint8 ``(C + 1, 3)``; left out, black and C distinct ones."""

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "classes", tuple(self.classes))
        if len(self.palette) == 0:
            put(self, "palette", np.array([(0, 0, 0), *distinct_colors(len(self.classes))], dtype=np.uint8))
        count = len(self.classes)
        if self.labels.ndim != 2 or self.labels.size == 0 or int(self.labels.max()) > count:
            raise SettingError(f"labels is {self.labels.shape}; expected (H, W) with 0 to {count}, a number per class.")
        if self.palette.shape != (count + 1, 3) or self.scores.shape != (count,):
            raise SettingError(
                f"palette {self.palette.shape} and scores {self.scores.shape} for {count} classes; expected "
                f"({count + 1}, 3), background first, and ({count},)."
            )

    @property
    def size_wh(self) -> tuple[int, int]:
        """Size of the upright picture."""
        return self.labels.shape[1], self.labels.shape[0]

    @property
    def areas(self) -> np.ndarray:
        """Pixels of each class, int64 ``(C,)``."""
        return np.bincount(self.labels.ravel(), minlength=len(self.classes) + 1)[1:]

    def mask(self, name: str) -> np.ndarray:
        """Return where a class is, bool ``(H, W)``."""
        if name not in self.classes:
            raise SettingError(f"No class {name!r}; there are {', '.join(self.classes)}.")
        return self.labels == self.classes.index(name) + 1

    def colored(self) -> Image.Image:
        """Return the map in its colours, RGB."""
        return Image.fromarray(self.palette[self.labels])

    def overlay(self, *, alpha: float = 0.55, legend: bool = True) -> Image.Image:
        """Lay the colours over the picture, with the legend below; the background shows the picture alone.

        Args:
            alpha: How much the colours cover, 0 to 1.
            legend: Name the classes that are there.
        """
        if self.image is None:
            raise SettingError("An overlay needs the picture: use dataclasses.replace(result, image=picture).")
        if not 0 <= alpha <= 1:
            raise SettingError(f"overlay: alpha={alpha}, expected 0 to 1.")
        cover = Image.fromarray(np.where(self.labels == 0, 0, round(255 * alpha)).astype(np.uint8))
        drawn = Image.composite(self.colored(), self.image, cover)
        if not legend:
            return drawn
        below = self.legend(width=drawn.width)
        sheet = Image.new("RGB", (max(drawn.width, below.width), drawn.height + below.height), (255, 255, 255))
        sheet.paste(drawn, (0, 0))
        sheet.paste(below, (0, drawn.height))
        return sheet

    def legend(self, *, width: int = 480) -> Image.Image:
        """Draw colour, name, share and score of each class that is there, the largest first.

        Args:
            width: In pixels; a name that is longer makes the legend wider, one of more than 60 letters is cut.
        """
        size = min(max(12, width // 44), 40)
        font = ImageFont.load_default(size)
        areas = self.areas
        there = [k for k in np.argsort(-areas, kind="stable").tolist() if areas[k]]
        share = 100 / self.labels.size
        rows: list[tuple[tuple[int, ...], str]] = [
            (
                tuple(self.palette[k + 1].tolist()),
                f"{_cut(self.classes[k])}  {_percent(float(areas[k]) * share)}  {self.scores[k]:.2f}",
            )
            for k in there
        ]
        rest = int(self.labels.size - areas.sum())
        if rest or not rows:
            rows.append((tuple(self.palette[0].tolist()), f"background  {_percent(rest * share)}"))
        row, gap = round(1.6 * size), size // 2
        cell = round(max(font.getlength(text) for _, text in rows)) + row + 2 * gap
        columns = max(min(width // cell, len(rows)), 1)
        lines = -(-len(rows) // columns)
        sheet = Image.new("RGB", (max(width, cell), row * lines + 2 * gap), (255, 255, 255))
        pen = ImageDraw.Draw(sheet)
        for place, (color, text) in enumerate(rows):
            left, top = gap + place // lines * cell, gap + place % lines * row
            edge = (row - size) // 2
            pen.rectangle((left, top + edge, left + size, top + edge + size), color, (120, 120, 120))
            pen.text((left + row, top + row / 2), text, (20, 20, 20), font, anchor="lm")
        return sheet

    def to_json(self) -> dict[str, Any]:
        """Return all but the pixels."""
        areas = self.areas.tolist()
        return {
            "source": self.source,
            "size_wh": list(self.size_wh),
            "background": self.background,
            "classes": [
                {
                    "label": k + 1,
                    "name": name,
                    "area": areas[k],
                    "score": round(float(self.scores[k]), 6),
                    "color": self.palette[k + 1].tolist(),
                }
                for k, name in enumerate(self.classes)
            ],
        }

    def save(
        self, folder: str | Path, stem: str, *, sync: bool = False, more: dict[str, Any] | None = None
    ) -> list[Path]:
        """Write the map and what it means, replacing files of the same names.

        ``STEM.semantic.png`` holds the labels with their palette (16-bit grey above 254 classes), ``STEM.legend.png``
        the legend, ``STEM.semantic.overlay.png`` the picture with colours if there is one, and ``STEM.semantic.json``
        names, areas, scores and colours.

        Args:
            folder: Is made if it is not there.
            stem: What the names begin with.
            sync: Wait until the files are on the disk.
            more: Further entries of the JSON file.
        """
        from self1e.inference.export import as_json, as_png

        if stem in ("", "..") or Path(stem).name != stem:
            raise SettingError(f"stem={stem!r} must be a bare file name: put folders into `folder`.")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)

        def files() -> Iterator[tuple[Path, bytes]]:
            yield folder / f"{stem}.semantic.png", indexed_png(self.labels, self.palette)
            yield folder / f"{stem}.legend.png", as_png(self.legend())
            if self.image is not None:
                yield folder / f"{stem}.semantic.overlay.png", as_png(self.overlay())
            yield folder / f"{stem}.semantic.json", as_json(self.to_json() | (more or {}))

        return atomic_write_all(files(), sync=sync)

    @classmethod
    def read(cls, path: str | Path) -> SemanticMap:
        """Read ``STEM.semantic.png`` and the JSON file beside it."""
        path = Path(path)
        content = json.loads(path.with_suffix(".json").read_text("utf-8"))
        with Image.open(path) as image:
            labels = np.asarray(image)
        classes = content["classes"]
        return cls(
            labels=labels.astype(index_dtype(len(classes))),
            classes=tuple(entry["name"] for entry in classes),
            scores=np.array([entry["score"] for entry in classes], dtype=np.float32),
            background=content["background"],
            source=content["source"],
            palette=np.array([(0, 0, 0), *(entry["color"] for entry in classes)], dtype=np.uint8),
        )


def find_classes(
    model: Any, encoded: Any, classes: Sequence[str], *, background: float | None = 0.0, **options: Any
) -> SemanticMap:
    """Do what ``Self1E.semantic`` promises, for an encoded picture; ``options`` are those of ``class_logits``."""
    names = check_classes(classes)
    winners, best = highest(class_logits(model, encoded, names, **options), encoded.size_wh, len(names))
    labels = winners + 1
    if background is not None:
        labels[best <= background] = 0
    flat = labels.ravel()
    areas = np.bincount(flat, minlength=len(names) + 1)[1:]
    sums = np.bincount(flat, weights=_sigmoid(best).ravel(), minlength=len(names) + 1)[1:]
    return SemanticMap(
        labels=labels.astype(index_dtype(len(names))),
        classes=names,
        scores=np.clip(sums / np.maximum(areas, 1), 0, 1).astype(np.float32),
        background=background,
        image=encoded.image,
        source=encoded.source,
    )


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the names, or say what is wrong with them."""
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise PromptError(f"classes={classes!r:.80}; expected a list of names.")
    names = tuple(" ".join(name.split()) for name in classes)
    if not names or not all(names):
        raise PromptError(f"classes={list(classes)!r:.80} holds {'an empty name' if names else 'no name'}.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PromptError(f"classes names {twice!r} twice; a pixel has one class, so name each once.")
    if "background" in names:
        raise PromptError(
            "classes names 'background'; leave it out: pixels where no logit is above the background threshold are it."
        )
    if len(names) > 65534:
        raise SettingError(f"{len(names)} classes; a 16-bit map holds 65534.")
    return names


def class_logits(
    model: Any, encoded: Any, classes: Sequence[str], *, kind: str = "phrase", exact: str = "auto", **more: Any
) -> Iterator[Tensor]:
    """Yield each class's logits, float32 ``(h, w)``, in the order of the classes; a bounded number is held at a time.

    Args:
        model: A ``Self1E``.
        encoded: From ``encode``.
        classes: One query each.
        kind: See ``Self1E.segment``, like what follows.
        exact: See there.
        more: ``template`` and ``batch_size``.
    """
    for start in range(0, len(classes), CLASSES_AT_ONCE):
        some = classes[start : start + CLASSES_AT_ONCE]
        yield from model.mask_logits(encoded, some, kind=kind, exact=exact, **more)


def highest(
    logits: Iterable[Any], size_wh: tuple[int, int], num_classes: int, *, class_of: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Give every pixel the class of the highest logit; no threshold, ties to the lower class.

    Four maps of the picture's size are held at a time, however many classes there are.

    Args:
        logits: One map per query, float ``(h, w)``, arrays or tensors; a generator is consumed one at a time, so that
            459 maps of a large picture never exist together.
        size_wh: Size of the map; each query's is enlarged to it first, bilinear with ``align_corners=False``.
        num_classes: C.
        class_of: The class of each query, where a class has several names: the best name counts. Left out, query
            ``k`` is class ``k``.

    Returns:
        Classes, int32 ``(H, W)``, and their logits, float32 ``(H, W)``.

    Raises:
        SettingError: A class was not asked, or logits are not finite.
    """
    import torch
    from torch.nn import functional as F

    width, height = size_wh
    best = torch.full((height, width), -torch.inf)
    labels = torch.zeros((height, width), dtype=torch.int32)
    asked = []
    for k, scores in enumerate(logits):
        if k >= (num_classes if class_of is None else len(class_of)):
            raise SettingError(f"More than {k} logit maps; expected one per query: {k}.")
        label = k if class_of is None else class_of[k]
        scores = torch.as_tensor(scores).detach().to("cpu", torch.float32)
        if scores.ndim != 2 or not bool(torch.isfinite(scores).all()):
            raise SettingError(
                f"Logit map {k} has shape {tuple(scores.shape)} and holds NaN or infinity or is not (h, w): pass one "
                "finite map per query; a class that a gate rejects gets low logits, not -inf."
            )
        scores = F.interpolate(scores[None, None], size=(height, width), mode="bilinear", align_corners=False)[0, 0]
        wins = (scores > best) | ((scores == best) & (label < labels))
        best[wins], labels[wins] = scores[wins], label
        asked.append(label)
    missing = sorted(set(range(num_classes)) - set(asked))
    if missing or max(asked, default=0) >= num_classes:
        raise SettingError(
            f"{len(set(asked))} of {num_classes} classes were asked; not asked are e.g. {missing[:3]}. Every class is "
            "asked about every picture: leaving some out is an oracle."
        )
    return labels.numpy(), best.numpy()


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    import torch

    return torch.from_numpy(logits).sigmoid().numpy()


def _cut(name: str) -> str:
    """Shorten a name that would make a legend many times as wide as its picture."""
    return name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 3]}..."


def _percent(value: float) -> str:
    return "<0.1%" if 0 < value < 0.1 else f"{value:.1f}%"
