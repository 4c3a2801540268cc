"""Pictures to tiles: choose a grid, squash the picture onto it, cut, normalise (METHOD section 2).

A picture is resized, aspect ratio not kept, to ``(rows * S, columns * S)`` and cut row-major into
``S x S`` tiles. The published setting is one tile; there is never a thumbnail.

Shapes: n pictures; T tiles over all pictures; S tile side in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.image_utils import PILImageResampling
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.processing_utils import ImagesKwargs

from self1e.errors import PictureError, SettingError
from self1e.settings import MAX_TILES, check_max_tiles

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# What ``preprocess`` accepts per call. Everything else is a property of the checkpoint: set it on the instance.
_FIXED = ("size", "resample", "image_mean", "image_std", "rescale_factor", "do_resize", "do_rescale", "do_normalize")


@lru_cache(maxsize=MAX_TILES)
def _candidate_grids(max_tiles: int) -> tuple[tuple[int, int], ...]:
    """List every (columns, rows) of at most ``max_tiles`` tiles, smallest area first."""
    sides = range(1, max_tiles + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if columns * rows <= max_tiles]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def choose_grid(size_wh: tuple[int, int], tile: int, max_tiles: int) -> tuple[int, int]:
    """Choose the tile grid whose aspect ratio is closest to the picture's (METHOD section 2, step 2).

    On an exact tie the larger grid wins if the picture has more than half its pixels.

    Args:
        size_wh: Width and height of the picture in pixels.
        tile: Side of one tile in pixels.
        max_tiles: Most tiles allowed, 1 to 12.

    Returns:
        ``(rows, columns)``.
    """
    width, height = size_wh
    max_tiles = check_max_tiles(max_tiles)
    if width < 1 or height < 1 or tile < 1:
        raise PictureError(f"A picture of {width}x{height} on tiles of {tile} pixels: every side must be at least 1.")
    ratio, area = width / height, width * height
    best, best_difference = (1, 1), float("inf")
    for columns, rows in _candidate_grids(max_tiles):
        difference = abs(ratio - columns / rows)
        # Exact float equality on purpose: the published rule has no tolerance.
        tie_won = difference == best_difference and area > 0.5 * tile * tile * columns * rows
        if difference < best_difference or tie_won:
            best, best_difference = (rows, columns), difference
    return best


class Self1EImageKwargs(ImagesKwargs, total=False):
    """Settings of :class:`Self1EImageProcessor`, as saved in its JSON file."""

    max_tiles: int


class Self1EImageProcessor(GotOcr2ImageProcessorPil):
    """Cut pictures into normalised tiles, exactly as the released weights saw them.

    Always PIL, never torchvision: the two resize differently, and the weights were trained with PIL.

    Args:
        size: ``{"height": S, "width": S}``, the side of one (square) tile; 448.
        max_tiles: Most tiles per picture when the call does not say; 1 is the published setting.
        image_mean, image_std: Of ImageNet, on the 0..1 scale.
        resample: Bicubic, with PIL's antialiasing.
    """

    # ``Any``: the base class turns these into other types when it is built (``size`` into a SizeDict).
    valid_kwargs: Any = Self1EImageKwargs
    resample: Any = PILImageResampling.BICUBIC
    image_mean: Any = IMAGENET_MEAN
    image_std: Any = IMAGENET_STD
    size: Any = {"height": 448, "width": 448}  # noqa: RUF012 (as the base class spells it)
    max_tiles: int = 1
    model_input_names = ["pixel_values", "tile_grids"]  # noqa: RUF012

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not (self.size.height == self.size.width and self.size.height):
            raise SettingError(f"size={dict(self.size)!r} must be one square tile, e.g. 448 or dict(height=, width=).")
        self.max_tiles = check_max_tiles(self.max_tiles)
        self._tables: tuple[tuple[object, ...], np.ndarray] | None = None

    @property
    def tile_size(self) -> int:
        """Side of one tile in pixels (``S``)."""
        return int(self.size.height)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``save_pretrained`` writes."""
        found = super().to_dict()
        found.pop("_tables", None)
        return found

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Same as :meth:`preprocess`."""
        return self.preprocess(images, *args, **kwargs)

    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Any, max_tiles: int | None = None, return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """Turn pictures into tiles.

        Args:
            images: One picture or a (nested) sequence: PIL pictures, or uint8 arrays or tensors
                ``(H, W)``, ``(H, W, 3 or 4)`` or ``(3 or 4, H, W)``. Alpha is dropped, not composited.
            max_tiles: Most tiles per picture, 1 to 12; the instance's own setting if not given.
            return_tensors: ``"pt"``, ``"np"`` or None (NumPy arrays).

        Returns:
            ``pixel_values`` ``(T, 3, S, S)`` float32, pictures in order and each row-major;
            ``tile_grids`` ``(n, 2)`` int64, (rows, columns); ``original_sizes`` ``(n, 2)`` int64,
            (height, width); ``num_tiles`` ``(n,)`` int64.
        """
        _refuse(kwargs)
        limit = self.max_tiles if max_tiles is None else check_max_tiles(max_tiles)
        pictures = [_as_rgb(image) for image in _flatten(images)]
        side = self.tile_size
        grids = [choose_grid(picture.size, side, limit) for picture in pictures]
        counts = [rows * columns for rows, columns in grids]

        pixels = np.empty((sum(counts), 3, side, side), dtype=np.float32)
        first = 0
        for picture, (rows, columns), count in zip(pictures, grids, counts, strict=True):
            self._fill(pixels[first : first + count], picture, rows, columns)
            first += count
        data = {
            "pixel_values": pixels,
            "tile_grids": np.array(grids, dtype=np.int64).reshape(-1, 2),
            "original_sizes": np.array([picture.size[::-1] for picture in pictures], dtype=np.int64).reshape(-1, 2),
            "num_tiles": np.array(counts, dtype=np.int64),
        }
        if return_tensors == "pt":
            import torch

            # ``from_numpy`` shares memory; letting BatchFeature convert would copy every pixel once more.
            return BatchFeature({name: torch.from_numpy(value) for name, value in data.items()})
        if return_tensors not in (None, "np"):
            raise SettingError(f"return_tensors={return_tensors!r} is unknown; choose 'pt', 'np' or None.")
        return BatchFeature(data)

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Count the tiles of a picture of that size (transformers' name for it)."""
        limit = (images_kwargs or {}).get("max_tiles") or self.max_tiles
        rows, columns = choose_grid((width, height), self.tile_size, limit)
        return rows * columns

    def cut(self, picture: Any, max_tiles: int | None = None) -> tuple[np.ndarray, tuple[int, int]]:
        """Cut one picture into tiles that are not normalised yet, a quarter of the bytes.

        Args:
            picture: See :meth:`preprocess`.
            max_tiles: See :meth:`preprocess`.

        Returns:
            Levels, uint8 ``(T, 3, S, S)``, row-major; and ``(rows, columns)``.
        """
        picture = _as_rgb(picture)
        limit = self.max_tiles if max_tiles is None else check_max_tiles(max_tiles)
        rows, columns = choose_grid(picture.size, self.tile_size, limit)
        levels = self._levels(picture, rows, columns).transpose(0, 2, 4, 1, 3)
        return np.ascontiguousarray(levels.reshape(-1, *levels.shape[2:])), (rows, columns)

    def normalise(self, levels: np.ndarray) -> np.ndarray:
        """Turn levels of :meth:`cut` into what :meth:`preprocess` returns, bit for bit: float32, same shape."""
        pixels = np.empty(levels.shape, dtype=np.float32)
        for channel, table in enumerate(self._normalising_tables()):
            np.take(table, levels[:, channel], out=pixels[:, channel], mode="clip")
        return pixels

    def _levels(self, picture: Image.Image, rows: int, columns: int) -> np.ndarray:
        """Resize one picture to its tiles: uint8 ``(rows, S, columns, S, 3)``."""
        side = self.tile_size
        resized = picture
        if picture.size != (columns * side, rows * side):  # PIL's resize to the same size copies, bit for bit
            resized = picture.resize((columns * side, rows * side), Image.Resampling(int(self.resample)))
        return np.asarray(resized).reshape(rows, side, columns, side, 3)

    def _fill(self, out: np.ndarray, picture: Image.Image, rows: int, columns: int) -> None:
        """Resize one picture and write its normalised tiles to ``out`` ``(rows * columns, 3, S, S)``."""
        side = self.tile_size
        levels = self._levels(picture, rows, columns)
        tiles = out.reshape(rows, columns, 3, side, side)
        tables = self._normalising_tables()
        for row in range(rows):
            for column in range(columns):
                for channel in range(3):
                    # A look-up is one pass and bit-identical to dividing; "clip" lets ``out`` be written directly.
                    np.take(
                        tables[channel],
                        levels[row, :, column, :, channel],
                        out=tiles[row, column, channel],
                        mode="clip",
                    )

    def _normalising_tables(self) -> np.ndarray:
        """Normalised value of each of the 256 levels, float32 ``(3, 256)``, in the published order of operations."""
        key = (*np.ravel(self.image_mean), *np.ravel(self.image_std))
        if self._tables is None or self._tables[0] != key:
            mean = np.broadcast_to(np.asarray(self.image_mean, dtype=np.float32), 3)[:, None]
            std = np.broadcast_to(np.asarray(self.image_std, dtype=np.float32), 3)[:, None]
            if not (std > 0).all():
                raise SettingError(f"image_std={self.image_std!r} must be above 0 in every channel.")
            levels = np.arange(256, dtype=np.float32) / np.float32(255)
            self._tables = (key, (levels - mean) / std)
        return self._tables[1]


def _refuse(kwargs: Mapping[str, Any]) -> None:
    """Reject what a call cannot change, rather than ignore it; a None changes nothing."""
    given = sorted(name for name, value in kwargs.items() if value is not None)
    if not given:
        return
    hint = (
        "these belong to the checkpoint: pass them to Self1EImageProcessor(...)"
        if set(given) <= set(_FIXED)
        else "preprocess() takes images, max_tiles and return_tensors"
    )
    raise SettingError(f"Unexpected {', '.join(given)}; {hint}.")


def _flatten(images: Any) -> Iterable[Any]:
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        for image in images:
            yield from _flatten(image)
    elif getattr(images, "ndim", 0) == 4:
        yield from images
    else:
        yield images


def _as_rgb(image: Any) -> Image.Image:
    """Convert to RGB, dropping alpha."""
    if not isinstance(image, Image.Image):
        image = _from_array(image)
    if image.mode == "RGB":
        return image
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # same pixels; going straight to RGB makes PIL warn
    return image.convert("RGB")


def _from_array(image: Any) -> Image.Image:
    if hasattr(image, "detach"):  # a torch tensor, without importing torch
        image = image.detach().cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise PictureError(
            f"Found a picture of type {type(image).__name__}; expected a PIL picture or a uint8 array. "
            "Open files with PIL.Image.open(...) first."
        )
    array = cast("np.ndarray[Any, Any]", image)
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if (
        array.dtype != np.uint8
        or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)))
        or not array.size
    ):
        raise PictureError(
            f"Found an array of shape {tuple(array.shape)} and type {array.dtype}; expected uint8 "
            "(H, W), (H, W, 3) or (H, W, 4) with levels 0..255. Multiply 0..1 floats by 255 and round first."
        )
    return Image.fromarray(np.ascontiguousarray(array))
