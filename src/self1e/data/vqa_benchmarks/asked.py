"""One question of a benchmark, as it is put to a model, with what is needed to judge the answer."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from self1e.data.files import read_rgb
from self1e.errors import DatasetError


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question, its picture (not yet opened) and the truth."""

    id: str
    """Unique within the benchmark; where the test server knows the question by a number, that number."""
    prompt: str
    """The whole question, with the benchmark's request for a short answer."""
    picture: Path | bytes | Callable[[], Image.Image]
    """A file, an encoded picture, or how to draw it."""
    picture_id: str
    """Equal for questions about the same picture, which then share one encoding."""
    truth: dict[str, Any] | None = None
    """What the metric's ``update`` takes besides id and prediction; None where the answers are not public."""
    submitted: dict[str, Any] = field(default_factory=dict)
    """What a file for the test server says besides the answer."""

    def image(self) -> Image.Image:
        """Open the picture: RGB, its pixels as stored, as InternVL's evaluation takes them (EXIF not heeded).

        Raises:
            DatasetError: It is missing or cannot be read.
        """
        if isinstance(self.picture, Path):
            image = read_rgb(self.picture, self.id)
        elif isinstance(self.picture, bytes):
            try:
                with Image.open(io.BytesIO(self.picture)) as opened:
                    image = opened.convert("RGB")
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise DatasetError(
                    f"{self.id}: its picture cannot be read ({error}); download the file anew."
                ) from error
        else:
            image = self.picture().convert("RGB")
        image.info.clear()  # what follows would turn it by its EXIF
        return image


def find_home(root: str | Path, name: str, *files: str) -> Path:
    """Find a set's folder: ``data/NAME`` beside the data sets' folder (as published), ``data/NAME`` or ``NAME`` in it.

    Args:
        root: The data sets' folder.
        name: Of the set's folder.
        files: Patterns, of which any must match; an error lists them.

    Raises:
        DatasetError: No such folder holds any of the files.
    """
    root = Path(root)
    places = [root / "data" / name, root / name, root.absolute().parent / "data" / name]
    for place in places:
        if any(next(place.glob(pattern), None) is not None for pattern in files):
            return place
    raise DatasetError(
        f"No {' or '.join(files)} in {', '.join(map(str, places))}; download it there, under its official name."
    )
