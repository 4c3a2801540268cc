"""The values that pass between parts: how a picture is tiled, and what segmenting it gives.

A ``Segmentation`` keeps each mask as a run-length code at the picture's own size (COCO's compressed
RLE): 150 masks of a 24-megapixel photo are a few megabytes instead of 3.6 gigabytes, and area and box
are read from the code without decoding. ``masks`` decodes all of them, ``mask(k)`` one.

Shapes: K queries; H, W pixels of the upright picture; h, w pixels at the mask head's resolution.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from self1e.errors import SettingError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from self1e.outlines import Polygon

DEFAULT_TEXT = "[SEG]."
"""What the model is made to say per query when it is not asked to write an answer of its own."""

_SHOWN = 3  # queries in a repr
_SHOWN_LETTERS = 40  # letters of a query in a repr


@dataclass(frozen=True)
class TileGrid:
    """How many tiles a picture is cut into, without the thumbnail."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise SettingError(f"A tile grid of {self.rows} rows x {self.columns} columns: both must be at least 1.")

    @property
    def num_tiles(self) -> int:
        """Rows times columns."""
        return self.rows * self.columns

    @property
    def shape_hw(self) -> tuple[int, int]:
        """``(rows, columns)``, in the order of array axes."""
        return self.rows, self.columns


@dataclass(frozen=True, repr=False, eq=False)
class Segmentation:
    """One picture's masks, one per query; an empty mask says "not there".

    ``len(result)`` is the number of queries, ``result[k]`` is the result of one of them, and iterating
    yields these one by one, so that ``for one in result: use(one.mask())`` holds a single mask at a time.
    Two results are equal when queries, masks, scores, size, text and source are: picture and logits are
    not compared.
    """

    queries: tuple[str, ...]
    """What was asked, K of them."""
    rles: tuple[dict[str, Any], ...]
    """Per query a compressed COCO RLE, ``{"size": [H, W], "counts": bytes}``."""
    scores: np.ndarray
    """Float32 ``(K,)`` in 0..1: mean sigmoid over the predicted pixels, 0 for an empty mask."""
    size_wh: tuple[int, int]
    """Size of the upright picture, and of every mask."""
    image: Image.Image | None = field(default=None)
    """The upright RGB picture; ``overlay`` and ``cutout`` need it."""
    text: tuple[str, ...] = ()
    """What the model says per query; left out, ``"[SEG]."`` each. Without queries it may be of any length:
    an answer that holds no [SEG] is an answer."""
    source: str = ""
    """Where the picture comes from: error messages and exported files name it."""
    mask_logits: np.ndarray | None = field(default=None)
    """Float32 ``(K, h, w)`` before scaling to the picture's size, above 0 is foreground; kept on request only."""
    _dense: np.ndarray | None = field(default=None, init=False)
    """Bool ``(K, H, W)``, if they are kept (`decoded`)."""

    def __post_init__(self) -> None:
        if isinstance(self.queries, str):
            raise SettingError(f"queries is the single string {self.queries!r}; pass a tuple of strings: one per mask.")
        put = object.__setattr__  # the dataclass is frozen for everybody else
        put(self, "queries", tuple(self.queries))
        put(self, "size_wh", (int(self.size_wh[0]), int(self.size_wh[1])))
        put(self, "rles", tuple(_checked_rle(k, rle, self.size_wh) for k, rle in enumerate(self.rles)))
        put(self, "scores", _checked_scores(self.scores))
        put(self, "text", tuple(self.text) or (DEFAULT_TEXT,) * len(self.queries))
        self._check_lengths()
        self._check_image()
        if self.mask_logits is not None:
            put(self, "mask_logits", np.asarray(self.mask_logits, dtype=np.float32))
            self._check_logits()

    @classmethod
    def from_masks(
        cls,
        masks: Iterable[ArrayLike],
        scores: ArrayLike,
        queries: Sequence[str],
        *,
        size_wh: tuple[int, int] | None = None,
        image: Image.Image | None = None,
        text: Sequence[str] = (),
        source: str = "",
        mask_logits: np.ndarray | None = None,
    ) -> Segmentation:
        """Build a result from pixels.

        Args:
            masks: Bool (or integer: not zero is foreground) ``(K, H, W)``, or any iterable of ``(H, W)``;
                a generator is consumed one mask at a time.
            scores: Confidence per query in 0..1, ``(K,)``; an empty mask's score becomes 0, by definition.
            queries: What was asked, K of them.
            size_wh: Size of the picture; needed only when there is neither a mask nor an image to read it from.
            image: The upright RGB picture.
            text: What the model says per query.
            source: Where the picture comes from.
            mask_logits: Float32 ``(K, h, w)``.
        """
        rles = tuple(encode_mask(mask) for mask in masks)
        if size_wh is None:
            size_wh = image.size if image is not None else _size_of(rles)
        scores = np.array(scores, dtype=np.float32)
        if scores.shape == (len(rles),):  # otherwise __post_init__ says what is wrong
            scores[_areas(rles) == 0] = 0
        if not isinstance(queries, str):
            queries = tuple(queries)
        return cls(queries, rles, scores, size_wh, image, tuple(text), source, mask_logits)  # type: ignore[arg-type]

    @property
    def masks(self) -> np.ndarray:
        """All masks, bool ``(K, H, W)``: decoded anew on every access, K times H times W bytes (see `decoded`)."""
        if self._dense is not None:
            return self._dense
        width, height = self.size_wh
        masks = np.empty((len(self), height, width), dtype=bool)
        for k in range(len(self)):
            masks[k] = self.mask(k)
        return masks

    def mask(self, k: int = 0) -> np.ndarray:
        """Decode the mask of query ``k``, bool ``(H, W)``."""
        if self._dense is not None:
            return self._dense[self._index(k)]
        return decode_rle(self.rles[self._index(k)])

    def decoded(self) -> Segmentation:
        """Return the same result with its masks kept as pixels: ``masks`` and ``mask`` then cost nothing.

        They take K times H times W bytes as long as it lives, and are read-only. ``result[k]`` and
        ``dataclasses.replace`` make results without them.
        """
        found = replace(self)
        masks = self.masks
        masks.setflags(write=False)
        object.__setattr__(found, "_dense", masks)
        return found

    @property
    def areas(self) -> np.ndarray:
        """Foreground pixels per query, int64 ``(K,)``."""
        return _areas(self.rles)

    @property
    def is_empty(self) -> np.ndarray:
        """True where the model found nothing, bool ``(K,)``."""
        return self.areas == 0

    @property
    def boxes_xyxy(self) -> np.ndarray:
        """Smallest box around each mask in half-open pixels, int64 ``(K, 4)``; zeros if empty."""
        if not len(self):
            return np.zeros((0, 4), dtype=np.int64)
        from pycocotools import mask as coco

        boxes = coco.toBbox(_for_coco(list(self.rles))).astype(np.int64)  # x, y, width, height
        boxes[:, 2:] += boxes[:, :2]
        boxes[self.is_empty] = 0
        return boxes

    def overlay(
        self,
        *,
        alpha: float = 0.45,
        colors: Sequence[str | tuple[int, int, int]] | None = None,
        legend: bool = True,
    ) -> Image.Image:
        """Draw the masks on the picture, one colour per query.

        Args:
            alpha: How much of the fill covers the picture, 0 (contour only) to 1.
            colors: One per query, as RGB triples or names that PIL knows; left out, K distinct ones.
            legend: Write the queries into the corner where they hide the least; pictures too small for it get none.

        Returns:
            RGB picture of the same size.
        """
        from self1e.drawing import draw_overlay

        self._need_image("An overlay")
        return draw_overlay(self, alpha=alpha, colors=colors, legend=legend)

    def cutout(self, k: int = 0) -> Image.Image:
        """Return the picture with everything but query ``k`` transparent: RGBA, same size.

        ``result.cutout(k).crop(result.boxes_xyxy[k].tolist())`` is the object alone.
        """
        cut = self._need_image("A cutout").convert("RGBA")
        cut.putalpha(mask_image(self.mask(k)))
        return cut

    def parts(self, *, fill_holes: bool = False, min_area: int = 0, connectivity: int = 8) -> Segmentation:
        """Split every mask into its connected pieces, the largest first.

        Args:
            fill_holes: Close what a piece encloses; done first.
            min_area: Leave out pieces of fewer pixels.
            connectivity: 8 if pixels that touch at a corner belong together, else 4.

        Returns:
            A result with one mask per piece, whose query is the one it was found for; a query without a piece keeps
            its empty mask. With ``mask_logits`` (``return_logits=True``) a piece's score is the mean sigmoid over its
            pixels, otherwise it is the whole mask's.
        """
        from self1e.inference.parts import PartOptions

        chosen = PartOptions(split=True, fill_holes=fill_holes, min_area=min_area, connectivity=connectivity)
        return chosen.apply(self)

    def tidied(self, *, fill_holes: bool = False, min_area: int = 0, connectivity: int = 8) -> Segmentation:
        """Close holes and drop small pieces, and leave each query its one mask; arguments as for ``parts``."""
        from self1e.inference.parts import PartOptions

        chosen = PartOptions(split=False, fill_holes=fill_holes, min_area=min_area, connectivity=connectivity)
        return chosen.apply(self)

    def to_supervision(self) -> Any:
        """Return what was found as supervision's ``Detections``; needs the extra ``supervision``.

        Masks bool, boxes half-open in pixels, scores as ``confidence``, the number of the query (of equal ones the
        first) as ``class_id``, its words in ``data["class_name"]``. What is not there is left out.
        """
        from self1e.inference.exports.supervision import to_detections

        return to_detections(self)

    def to_coco_rle(self) -> list[dict[str, Any]]:
        """Return the masks as COCO's JSON has them: ``{"size": [H, W], "counts": str}`` per query."""
        return [{"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")} for rle in self.rles]

    def to_polygons(self) -> list[list[Polygon]]:
        """Trace every mask along its pixels' edges.

        Returns:
            Per query a list of ``{"exterior": (N, 2), "holes": [(M, 2), ...]}``, int32 x, y. Filling them by
            the even-odd rule gives the mask back exactly; see ``self1e.outlines``.
        """
        from self1e.outlines import trace_polygons

        return [trace_polygons(self.mask(k)) for k in range(len(self))]

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, k: int) -> Segmentation:
        k = self._index(k)
        logits = None if self.mask_logits is None else self.mask_logits[k : k + 1]
        return replace(
            self,
            queries=(self.queries[k],),
            rles=(self.rles[k],),
            scores=self.scores[k : k + 1],
            text=(self.text[k],),
            mask_logits=logits,
        )

    def __iter__(self) -> Iterator[Segmentation]:
        return (self[k] for k in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segmentation):
            return NotImplemented
        fields = ("queries", "rles", "size_wh", "text", "source")
        same = all(getattr(self, name) == getattr(other, name) for name in fields)
        return same and np.array_equal(self.scores, other.scores)

    __hash__ = None  # type: ignore[assignment]  # holds dicts and arrays

    def __repr__(self) -> str:
        count = f"{len(self)} {'query' if len(self) == 1 else 'queries'}"
        head = f"<Segmentation {count}, {self.size_wh[0]}x{self.size_wh[1]}"
        if not len(self):
            return head + "".join(f", said {_shorten(text)!r}" for text in self.text[:1]) + ">"
        areas = _areas(self.rles[:_SHOWN])
        found = [self._found(k, int(area)) for k, area in enumerate(areas)]
        more = [f"{len(self) - _SHOWN} more"] if len(self) > _SHOWN else []
        return f"{head}: {', '.join(found + more)}>"

    def _found(self, k: int, area: int) -> str:
        """Say what became of query ``k`` in a few characters."""
        query = repr(_shorten(self.queries[k]))
        if area == 0:
            return f"{query} not there"
        percent = 100 * area / (self.size_wh[0] * self.size_wh[1])
        return f"{query} {'<0.1' if percent < 0.1 else f'{percent:.1f}'}% {self.scores[k]:.2f}"

    def _index(self, k: int) -> int:
        index = operator.index(k)
        if not -len(self) <= index < len(self):
            raise IndexError(
                f"Query {index} of {len(self)}: valid are 0 to {len(self) - 1}." if len(self) else "No query."
            )
        return index % len(self)

    def _need_image(self, what: str) -> Image.Image:
        if self.image is None:
            raise SettingError(
                f"{what} needs the picture, and this result has none: "
                "use dataclasses.replace(result, image=picture) with the upright RGB picture."
            )
        return self.image

    def _check_lengths(self) -> None:
        expected = len(self.queries)
        texts = len(self.text) if expected else 0
        found = {"masks": len(self.rles), "scores": len(self.scores), "text": texts}
        wrong = [f"{count} {name}" for name, count in found.items() if count != expected]
        if wrong:
            raise SettingError(
                f"{self._name}{' and '.join(wrong)} for {expected} queries {self.queries!r:.80}; "
                "pass one of each per query."
            )

    def _check_image(self) -> None:
        if min(self.size_wh) < 1:
            raise SettingError(f"{self._name}size_wh={self.size_wh}: width and height must be at least 1.")
        if self.image is not None and (self.image.size != self.size_wh or self.image.mode != "RGB"):
            raise SettingError(
                f"{self._name}image is {self.image.mode} {_times(self.image.size)}, expected RGB "
                f"{_times(self.size_wh)} like the masks: pass the upright picture that was segmented."
            )

    def _check_logits(self) -> None:
        assert self.mask_logits is not None
        if self.mask_logits.ndim != 3 or len(self.mask_logits) != len(self):
            raise SettingError(
                f"{self._name}mask_logits has shape {self.mask_logits.shape}, expected ({len(self)}, h, w): "
                "one per query."
            )

    @property
    def _name(self) -> str:
        return f"{self.source}: " if self.source else ""


def encode_mask(mask: ArrayLike) -> dict[str, Any]:
    """Encode one mask, bool or integer ``(H, W)``, as compressed COCO RLE."""
    from pycocotools import mask as coco

    array = np.asarray(mask)
    if array.ndim != 2 or array.size == 0:
        raise SettingError(f"A mask has shape {array.shape}, expected (H, W) with at least one pixel.")
    if array.dtype.kind not in "bui":
        raise SettingError(f"A mask has dtype {array.dtype}, expected bool: threshold first, e.g. mask_logits > 0.")
    return dict(coco.encode(np.asfortranarray(array != 0, dtype=np.uint8)))


def encode_edges(edges: ArrayLike, size_hw: tuple[int, int]) -> tuple[dict[str, Any], int]:
    """Encode a mask by the places where it changes, as compressed COCO RLE.

    Args:
        edges: Places down the columns at which foreground begins, ends, begins ..., int64, rising; the end of the
            picture may be among them.
        size_hw: Height and width of the mask.

    Returns:
        The code, byte for byte that of pycocotools, and the area.
    """
    height, width = size_hw
    counts = np.diff(np.asarray(edges, dtype=np.int64), prepend=0, append=height * width)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    return {"size": [height, width], "counts": compressed_counts(counts)}, int(counts[1::2].sum())


def emptied(
    masks: Iterable[tuple[dict[str, Any], float] | None], size_wh: tuple[int, int], least_score: float | None = None
) -> list[tuple[dict[str, Any], float]]:
    """Put an empty mask of score 0 where there is none, and where one scores too little: "not there".

    Args:
        masks: Compressed COCO RLE and score each, or None.
        size_wh: Of the picture.
        least_score: Masks that score less become empty; None keeps them all.
    """
    width, height = size_wh
    nothing = encode_edges([], (height, width))[0], 0.0
    return [one if one is not None and (least_score is None or one[1] >= least_score) else nothing for one in masks]


def compressed_counts(counts: np.ndarray) -> bytes:
    """Write run lengths as COCO's compressed counts, int64 ``(R,)``: the opposite of `run_lengths`."""
    values = counts.copy()
    values[3:] -= counts[1:-2]
    places = 5 * np.arange(7)  # 7 digits hold any difference of runs below 2**32
    # The last digit's highest bit is the sign: the fewest digits that hold the value and its sign.
    digits = 1 + (np.where(values < 0, ~values, values)[:, None] >= (16 << places[:-1])).sum(1)
    codes = (values[:, None] >> places) & 31
    codes += 48 + 32 * (np.arange(7) < digits[:, None] - 1)
    return codes[np.arange(7) < digits[:, None]].astype(np.uint8).tobytes()


def decode_rle(rle: dict[str, Any]) -> np.ndarray:
    """Decode one compressed COCO RLE, bool ``(H, W)``.

    Not with pycocotools: its ``decode`` makes NumPy 2 warn on every call.
    """
    height, width = rle["size"]
    runs = checked_runs(rle)
    column_major = np.repeat(np.arange(len(runs)) % 2 == 1, runs)  # background first
    return np.ascontiguousarray(column_major.reshape(width, height).T)


def checked_runs(rle: dict[str, Any]) -> np.ndarray:
    """Read the runs of one compressed COCO RLE, or say that they do not fill its mask."""
    height, width = rle["size"]
    runs = run_lengths(rle["counts"])
    if (runs < 0).any() or runs.sum() != height * width:
        raise SettingError(f"An RLE of size [{height}, {width}] codes {runs.sum()} pixels, expected {height * width}.")
    return runs


def run_lengths(counts: bytes) -> np.ndarray:
    """Read COCO's compressed counts, int64: background first, down the columns.

    A number is base-32 digits, least first, in characters from "0" on; 32 says that a digit follows, and the
    last digit's 16 is the sign. From the fourth number on it is the difference to the run before the previous.
    """
    codes = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes < 32) + 1
    if not len(ends):
        return ends
    starts = np.concatenate([[0], ends[:-1]])
    digits = ends - starts
    place = np.arange(ends[-1]) - np.repeat(starts, digits)
    runs = np.add.reduceat((codes[: ends[-1]] & 31) << (5 * place), starts)
    runs -= np.where(codes[ends - 1] & 16, 1 << (5 * digits), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def mask_image(mask: np.ndarray, value: int = 255) -> Image.Image:
    """Turn a bool mask ``(H, W)`` into a PIL picture of mode L: 0 and ``value``."""
    return Image.fromarray(mask.astype(np.uint8) * np.uint8(value))


def _for_coco(rles: Any) -> Any:
    """Hide from the type checker that pycocotools' stubs name a private type."""
    return rles


def _areas(rles: Sequence[dict[str, Any]]) -> np.ndarray:
    if not rles:
        return np.zeros(0, dtype=np.int64)
    from pycocotools import mask as coco

    return np.asarray(coco.area(_for_coco(list(rles))), dtype=np.int64)


def _size_of(rles: Sequence[dict[str, Any]]) -> tuple[int, int]:
    if not rles:
        raise SettingError("Neither masks nor image: pass size_wh, so that the result knows the picture's size.")
    height, width = rles[0]["size"]
    return width, height


def _checked_rle(k: int, rle: dict[str, Any], size_wh: tuple[int, int]) -> dict[str, Any]:
    """Bring one RLE into the form that we keep: a list and bytes."""
    counts = rle.get("counts")
    if isinstance(counts, str):
        counts = counts.encode("ascii")
    if not isinstance(counts, bytes) or "size" not in rle:
        raise SettingError(
            f"rles[{k}] is {rle!r:.80}; expected compressed COCO RLE, "
            "{'size': [H, W], 'counts': bytes}: use Segmentation.from_masks for pixels."
        )
    height, width = (int(side) for side in rle["size"])
    if (width, height) != size_wh:
        raise SettingError(
            f"Mask {k} is {width}x{height}, expected {_times(size_wh)}: masks have the picture's own size."
        )
    return {"size": [height, width], "counts": counts}


def _checked_scores(scores: ArrayLike) -> np.ndarray:
    checked = np.array(scores, dtype=np.float32)  # a copy: what the caller does to theirs is not our result
    if checked.ndim != 1:
        raise SettingError(f"scores has shape {checked.shape}, expected (K,): one number per query.")
    wrong = ~((checked >= 0) & (checked <= 1))  # true for NaN as well
    if wrong.any():
        raise SettingError(f"scores holds {checked[wrong][0]}; expected 0..1: the mean sigmoid over predicted pixels.")
    checked.setflags(write=False)
    return checked


def _shorten(words: str) -> str:
    return words if len(words) <= _SHOWN_LETTERS else words[: _SHOWN_LETTERS - 3].rstrip() + "..."


def _times(size_wh: tuple[int, int]) -> str:
    return f"{size_wh[0]}x{size_wh[1]}"
