"""Small pictures for a page: the photograph once, truth, prediction and error as transparent layers over it."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from self1e.drawing import distinct_colors
from self1e.evaluation.report.truths import Found

SIDE = 360
"""Longest side of a panel, in pixels."""
TRUTH, PREDICTION = (0, 158, 115), (86, 110, 255)
RIGHT, EXTRA, MISSED, IGNORED = (190, 190, 190), (213, 94, 0), (0, 114, 178), (110, 110, 110)
"""Colours that most colour-blind eyes tell apart (Okabe and Ito)."""
_ALPHA = 165


def small_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a panel of a picture."""
    scale = min(1.0, SIDE / max(image.size))
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def photograph_url(image: Image.Image) -> str:
    """Encode a picture as a data URL (JPEG)."""
    small = image.convert("RGB").resize(small_size(image), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def layers(found: Found) -> list[tuple[str, str]]:
    """Draw what is known of a sample: name and data URL (PNG) of each layer over the picture."""
    if found.truth is None:
        return []
    drawn = _class_layers(found) if found.classes else _mask_layers(found)
    return [(name, _layer_url(codes, palette, found.image)) for name, codes, palette in drawn]


Layer = tuple[str, np.ndarray, list[tuple[int, int, int]]]


def _mask_layers(found: Found) -> list[Layer]:
    truth, prediction = found.truth, found.prediction
    assert truth is not None  # `layers` looks
    ignored = np.zeros_like(truth) if found.ignored is None else found.ignored
    made: list[Layer] = [("truth", np.where(ignored, 2, truth.astype(np.uint8)), [TRUTH, IGNORED])]
    if prediction is not None:
        made.append(("prediction", prediction.astype(np.uint8), [PREDICTION]))
        error = np.select([ignored, truth & prediction, prediction, truth], [4, 1, 2, 3], 0)
        made.append(("error", error, [RIGHT, EXTRA, MISSED, IGNORED]))
    return made


def _class_layers(found: Found) -> list[Layer]:
    truth, prediction = found.truth, found.prediction
    assert truth is not None  # `layers` looks
    assert found.ignored is not None  # class maps have it
    palette: list[tuple[int, int, int]] = distinct_colors(min(254, len(found.classes)))

    def shown(labels: np.ndarray) -> np.ndarray:
        return np.where(labels < len(found.classes), labels % 254 + 1, 0)

    made: list[Layer] = [("truth", np.where(found.ignored, 0, shown(truth)), palette)]
    if prediction is not None:
        made.append(("prediction", shown(prediction), palette))
        error = np.select([found.ignored, truth == prediction], [2, 0], 1)
        made.append(("error", error, [EXTRA, IGNORED]))
    return made


def _layer_url(codes: np.ndarray, palette: list[tuple[int, int, int]], image: Image.Image) -> str:
    """Encode a layer: code 0 is clear, code k has colour k - 1."""
    layer = Image.fromarray(codes.astype(np.uint8)).resize(small_size(image), Image.Resampling.NEAREST)
    layer.putpalette([0, 0, 0, *(level for colour in palette for level in colour)])
    buffer = io.BytesIO()
    layer.save(buffer, "PNG", optimize=True, transparency=bytes([0, *[_ALPHA] * len(palette)]))
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def class_legend(found: Found) -> list[tuple[str, tuple[int, int, int]]]:
    """Names and colours of the classes that a panel shows, the largest first."""
    assert found.truth is not None  # class maps have it
    palette = distinct_colors(min(254, len(found.classes)))
    labels = found.truth if found.prediction is None else np.concatenate([found.truth, found.prediction])
    numbers, pixels = np.unique(labels, return_counts=True)
    order = np.argsort(-pixels)
    return [(found.classes[k], palette[k % 254]) for k in numbers[order].tolist() if k < len(found.classes)]
