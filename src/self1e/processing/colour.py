"""Any pixels to 8-bit RGB, the one form that the model sees.

Alpha is dropped, not composited: the published code does ``convert("RGB")``, and a transparent pixel keeps
the colour that its file gives it. Embedded colour profiles are not applied, for the same reason.

More than 8 bits are scaled, never cut: 16-bit pictures by their full range, 65535 becoming 255 (TIFF files
that say 12 bits: 4095 becoming 255); 32-bit and float ones by the smallest of 0..1 (float only), 0..255 and
0..65535 that holds all their values, and where none does, by their own minimum and maximum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from self1e.errors import PictureError

_CHANNELS = (1, 3, 4)
_STRIP = 2**18  # values that are converted at once


def image_to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded PIL picture of any mode to a new RGB picture without metadata."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        rgb = Image.fromarray(_to_8_bit(np.asarray(image), _full_scale(image))).convert("RGB")
    elif image.mode == "LAB":  # PIL converts every mode but this one
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        rgb = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert rgb is not None
    elif image.mode == "La":  # premultiplied grey has one way out
        rgb = image.convert("LA").convert("RGB")
    elif image.mode == "RGBa":
        rgb = image.convert("RGBA").convert("RGB")
    else:
        rgb = image.convert("RGB")
    # Orientation or a CMYK profile, left behind, would be applied again by whoever opens or saves it next.
    rgb.info = {}
    return rgb


def array_to_rgb(array: np.ndarray, name: str, *, is_tensor: bool = False) -> Image.Image:
    """Convert an array to an RGB picture.

    Args:
        array: ``(H, W)``, ``(H, W, c)`` or ``(c, H, W)`` with 1, 3 or 4 channels c (alpha is dropped); bool,
            uint8, uint16, or float in 0..1.
        name: What messages call it.
        is_tensor: Where both ends could be channels, an array is channels-last, while a tensor is refused.
    """
    pixels = _values_to_8_bit(_channels_last(array, name, is_tensor), name)
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return Image.fromarray(np.array(pixels[..., :3], order="C"))  # a copy: PIL would share the memory


def _channels_last(array: np.ndarray, name: str, is_tensor: bool) -> np.ndarray:
    """View as ``(H, W, c)``."""
    expected = "expected (H, W), (H, W, c) or (c, H, W) with 1, 3 or 4 channels"
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim != 3:
        hint = "; it looks like a batch: pass its pictures one by one" if array.ndim == 4 else ""
        raise PictureError(f"{name} has shape {array.shape}, {expected}{hint}.")
    else:
        first, last = array.shape[0] in _CHANNELS, array.shape[2] in _CHANNELS
        if not first and not last:
            raise PictureError(f"{name} has shape {array.shape}, {expected}.")
        if first and last and is_tensor:
            raise PictureError(
                f"{name} has shape {array.shape}: either end could be channels. Pass a numpy (H, W, c) array."
            )
        if not last:
            array = np.moveaxis(array, 0, 2)
    if array.size == 0:
        raise PictureError(f"{name} has shape {array.shape}: there is not one pixel in it.")
    return array


def _values_to_8_bit(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return _to_8_bit(array, 65535)
    if array.dtype.kind != "f":
        raise PictureError(
            f"{name} has dtype {array.dtype}, expected bool, uint8, uint16 or float in 0..1; use .astype(np.uint8)."
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also true for NaN; resizing overshoots by rounding
        raise PictureError(
            f"{name} is {array.dtype} from {low:g} to {high:g}, expected 0..1; divide by 255 or undo its normalisation."
        )
    return _to_8_bit(array, 1)


def _full_scale(image: Image.Image) -> int | None:
    """Return the value that becomes 255, or None to look at the values."""
    if not image.mode.startswith("I;16"):
        return None
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(258)  # BitsPerSample
    return 4095 if bits in (12, (12,)) else 65535


def _to_8_bit(values: np.ndarray, full_scale: float | None) -> np.ndarray:
    """Scale ``0..full_scale`` to ``0..255``, rounded to nearest; None chooses as the module's header says."""
    low = 0.0
    if full_scale is None:
        ends = [(float(strip.min()), float(strip.max())) for strip in _strips(values)]
        low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        scales = (1, 255, 65535) if values.dtype.kind == "f" else (255, 65535)
        fitting = [scale for scale in scales if low >= 0 and high <= scale]
        low, full_scale = (0.0, fitting[0]) if fitting else (low, max(high - low, 1e-30))
    scaled = (np.clip(np.rint((strip - low) * 255 / full_scale), 0, 255) for strip in _strips(values))
    return np.concatenate([strip.astype(np.uint8) for strip in scaled])


def _strips(values: np.ndarray) -> Iterator[np.ndarray]:
    """Go through an array as finite floats, a few rows at a time: as a whole they would be the largest thing alive."""
    rows = max(_STRIP // max(values[0].size, 1), 1)
    for top in range(0, len(values), rows):
        strip = values[top : top + rows]
        yield np.nan_to_num(strip.astype(np.float32 if values.itemsize < 4 else np.float64), posinf=0, neginf=0)
