"""Opening the files of a data set, with errors that say which file, what was found and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from self1e.data.sample import Outline, Sample
from self1e.errors import DatasetError
from self1e.processing.pictures import upright_turn

_SIDEWAYS = (
    *(Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE),
    *(Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270),
)
_COCO_FOLDERS = (
    "coco/train2017",
    "coco/train2014",
    "coco/val2017",
    "coco/val2014",
    "refer_seg/images/mscoco/images/train2014",
    "refer_seg/images/mscoco/images/train2017",
    "refer_seg/images/mscoco/images/val2014",
)


def read_rgb(path: Path, source: str, size_wh: tuple[int, int] | None = None, *, upright: bool = False) -> Image.Image:
    """Read a picture as published: its pixels as stored, alpha dropped, EXIF not heeded (METHOD section 2).

    Args:
        path: Of the picture.
        source: What an error names.
        size_wh: What its annotations say; None to take any.
        upright: Heed EXIF, for a set that was annotated on upright pictures.

    Raises:
        DatasetError: It is missing, cannot be read, or has another size.
    """
    try:
        with Image.open(path) as opened:
            turn = _turn(opened) if upright else None
            image = opened.convert("RGB")
            if turn is not None:
                image = image.transpose(turn)
                image.info.clear()  # nobody shall turn it again
    except FileNotFoundError as error:
        raise DatasetError(f"{source}: no picture {path}; put it there, or take its annotation out.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{source}: {path} is no picture that can be read ({error}); download it anew.") from error
    if size_wh is not None and image.size != size_wh:
        raise DatasetError(
            f"{source}: {path} is {image.width}x{image.height} but its annotations say {size_wh[0]}x{size_wh[1]}; "
            "masks would lie elsewhere. Use the pictures that the annotations were made for, unscaled."
        )
    return image


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return upright_turn(image)
    except Exception:  # parsers of EXIF fail in many ways
        return None


def read_size(path: Path, source: str, *, upright: bool = False) -> tuple[int, int]:
    """Read a picture's width and height from its first bytes; ``upright`` as for `read_rgb`.

    Raises:
        DatasetError: It is missing or cannot be read.
    """
    try:
        with Image.open(path) as opened:
            lies = upright and _turn(opened) in _SIDEWAYS
            return (opened.height, opened.width) if lies else opened.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return read_rgb(path, source, upright=upright).size  # says what is wrong


def read_label_map(path: Path, source: str, size_wh: tuple[int, int]) -> np.ndarray:
    """Read a picture whose pixels are class numbers, uint8 or wider ``(H, W)``.

    Raises:
        DatasetError: It is missing, has colours instead of numbers, or another size than the picture.
    """
    try:
        with Image.open(path) as opened:
            mode, labels = opened.mode, np.asarray(opened)
    except FileNotFoundError as error:
        raise DatasetError(f"{source}: no class map {path}; it belongs to a picture of the same name.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"{source}: {path} cannot be read ({error}); download it anew.") from error
    if labels.ndim != 2:
        raise DatasetError(
            f"{source}: {path} has mode {mode}, expected one class number per pixel (mode L or P); this is the "
            "coloured form of the data set, download the one with numbers."
        )
    if labels.shape != size_wh[::-1]:
        height, width = labels.shape
        raise DatasetError(
            f"{source}: the class map is {width}x{height} but the picture {size_wh[0]}x{size_wh[1]}; they must be "
            "the same size."
        )
    return labels


def read_json(path: Path, expected: str, *, encodings: Sequence[str] = ("utf-8",)) -> Any:
    """Read a JSON file.

    Args:
        path: Of the file.
        expected: What it should hold, in words; an error says it.
        encodings: Tried in turn.

    Raises:
        DatasetError: It is missing, or is no JSON.
    """
    try:
        return json.loads(_decode(path.read_bytes(), encodings))
    except FileNotFoundError as error:
        raise DatasetError(f"No file {path}; expected {expected}.") from error
    except ValueError as error:  # also of the encoding
        raise DatasetError(f"{path} is no JSON ({error}); expected {expected}. Download it anew.") from error


def read_json_lines(path: Path, expected: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a file of one JSON object per line; empty lines are passed over.

    Args:
        path: Of the file.
        expected: What each line should hold, in words; an error says it.

    Yields:
        Number of the line, from 1, and its object.

    Raises:
        DatasetError: The file is missing or no text, or a line is no JSON object.
    """
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise DatasetError(f"No file {path}; expected JSON lines with {expected}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as text ({error}); expected JSON lines with {expected}.") from error
    for number, line in enumerate(text.split("\n"), 1):  # JSON may hold what `splitlines` takes for line ends
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DatasetError(
                f"{path}, line {number} is no JSON ({error}); expected an object with {expected}."
            ) from error
        if not isinstance(record, dict):
            raise DatasetError(f"{path}, line {number} holds {line[:40]!r}; expected an object with {expected}.")
        yield number, record


def _decode(raw: bytes, encodings: Sequence[str]) -> str:
    for encoding in encodings[:-1]:
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return raw.decode(encodings[-1])


class CocoPictures:
    """Find pictures of COCO wherever they are: its 2014 and 2017 editions hold the same ones under other names.

    ``000000000009.jpg`` of train2017 is ``COCO_train2014_000000000009.jpg`` of train2014; what is in train2017 and
    not in train2014 is in val2014. Ids are unique over all editions.
    """

    def __init__(self, root: str | Path, *folders: str | Path) -> None:
        """Look in ``folders`` first, then in the usual places under ``root``, the data sets' folder."""
        self.root = Path(root)
        places = [*map(Path, folders), *(self.root / folder for folder in _COCO_FOLDERS)]
        places += [self.root.parent / "data" / folder for folder in _COCO_FOLDERS[:4]]
        # Asked once: a missing folder costs no look-up per picture.
        self.folders = [place for place in dict.fromkeys(places) if place.is_dir()]

    def find(self, file_name: str, source: str) -> Path:
        """Find a picture by the name that annotations give it.

        Raises:
            DatasetError: It is in none of the folders.
        """
        names = coco_names(file_name)
        for folder in self.folders:
            for name in names:
                if (path := folder / name).is_file():
                    return path
        places = ", ".join(str(folder) for folder in self.folders) or f"{self.root / _COCO_FOLDERS[0]} or the like"
        raise DatasetError(f"{source}: no picture {' or '.join(names)} in {places}; download COCO's train2014 or 2017.")


@lru_cache(maxsize=4096)
def coco_names(file_name: str) -> tuple[str, ...]:
    """List every name that a COCO picture goes by, its own first.

    References also name pictures with the annotation's number behind, as in ``COCO_train2014_000000581857_16.jpg``.
    """
    name = Path(file_name).name
    found = re.fullmatch(r"(?:COCO_(?:train|val)2014_)?(\d{12})(?:_\d+)?\.jpg", name)
    if found is None:
        return (name,)
    number = found[1]
    names = (f"COCO_train2014_{number}.jpg", f"{number}.jpg", f"COCO_val2014_{number}.jpg")
    return tuple(sorted(names, key=lambda known: known != name))


class Chosen(Sequence[Sample]):
    """At most so many samples of a data set: drawn once, by seed, and kept in the data set's order.

    The published code draws anew in every process and run (METHOD section 8, item 11); this is the same everywhere.
    """

    def __init__(self, samples: Sequence[Sample], most: int, *, seed: int = 0) -> None:
        self.samples = samples
        count = len(samples)
        self.indices = np.arange(count)
        if count > most:
            self.indices = np.sort(np.random.default_rng((seed, most, count)).permutation(count)[:most])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        return self.samples[int(self.indices[index])]

    def peek(self, index: int, *, with_size: bool = False) -> Outline:
        """Outline a sample; see `Outline`."""
        return peek(self.samples, int(self.indices[index]), with_size=with_size)


def peek(samples: Sequence[Sample], index: int, *, with_size: bool = False) -> Outline:
    """Outline a sample; one of a data set that cannot say without reading is read.

    Args:
        samples: Any data set.
        index: Of the sample.
        with_size: Ask for the picture's size, which may cost opening its file.
    """
    own = getattr(samples, "peek", None)
    if own is not None:
        return own(index, with_size=with_size)
    sample = samples[index]
    letters = [len(target.text) for target in sample.targets]
    letters += [
        len(question.text) + len(question.answer) + sum(len(asked) + len(answer) for asked, answer in question.before)
        for question in sample.questions
    ]
    return Outline(letters=max(letters, default=0), has_mask=bool(sample.targets), size_wh=sample.image.size)
