"""What a reader finds in annotations before a picture is opened, and what can be wrong with it.

A reader turns a file into records and problems, and never stops at a bad entry. `open_data` refuses data with
problems; `self1e data check` lists them all. Both decode a record by the same code, so they never disagree.

Shapes: H, W pixels of the upright picture.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from self1e.data.sample import Sample, Target
from self1e.errors import DatasetError, PictureError
from self1e.processing.pictures import SUFFIXES, open_picture
from self1e.processing.prompts import Kind, guess_kind, without_article

SizeWH = tuple[int, int]

KINDS = {
    "unreadable-file": "annotations that cannot be read at all",
    "bad-record": "an entry that does not say what it must",
    "missing-file": "a picture or mask that is not there",
    "unreadable-picture": "a picture that cannot be decoded",
    "size-differs": "a mask, or a noted size, that is not the picture's",
    "bad-mask": "a mask file or run-length code that cannot be decoded",
    "bad-polygon": "a polygon that encloses nothing, or lies elsewhere",
    "unknown-class": "a class number without a name",
    "empty-mask": "a mask without a pixel where something should be",
    "duplicate-query": "the same words asked twice of one picture",
    "duplicate-picture": "one picture twice in a split",
    "leak": "one picture in two splits",
}
"""Every kind of problem, in the order of reports."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong: where, what was found, what was expected, what to do."""

    kind: str
    """A key of `KINDS`."""
    file: str
    """The file to mend."""
    where: str
    """Place in it: ``line 12``, ``annotation 7``; may be empty."""
    found: str
    expected: str
    advice: str
    split: str = ""

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.file, self.where) if part)
        return f"{place}: {self.found}; expected {self.expected}. {self.advice}"


class Flaw(DatasetError):
    """What is wrong with one thing, before its place is known."""

    def __init__(self, kind: str, found: str, expected: str, advice: str) -> None:
        assert kind in KINDS
        super().__init__(f"{found}; expected {expected}. {advice}")
        self.kind, self.found, self.expected, self.advice = kind, found, expected, advice

    def at(self, file: str | Path, where: str = "", split: str = "") -> Problem:
        """Say where it is."""
        return Problem(
            kind=self.kind,
            file=str(file),
            where=where,
            found=self.found,
            expected=self.expected,
            advice=self.advice,
            split=split,
        )


class Region(Protocol):
    """Some pixels in any notation."""

    def decode(self, size_wh: SizeWH) -> np.ndarray:
        """Decode to bool ``(H, W)``; a `Flaw` says why not."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """Words and the regions that they mean: their union."""

    text: str
    regions: tuple[tuple[str, Region], ...]
    """Where each is noted, and the region; none if the words mean nothing in the picture."""
    where: str
    kind: Kind | None = None
    """None to guess."""
    tag: str = ""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A query with its pixels."""

    text: str
    mask: np.ndarray
    """Bool ``(H, W)``."""
    is_absent: bool
    """The annotations say that it is not there."""
    where: str
    kind: Kind | None = None
    tag: str = ""
    flaws: tuple[tuple[str, Flaw], ...] = ()
    """Where and why regions are missing in ``mask``."""
    empty: tuple[str, ...] = ()
    """Where regions without a pixel are noted."""


class Annotation(Protocol):
    """What is noted about one picture."""

    def decode(self, size_wh: SizeWH) -> Iterator[Decoded]:
        """Decode query by query."""
        ...


@dataclass(frozen=True, slots=True)
class Listed:
    """Queries that are known before any pixel is."""

    queries: tuple[Query, ...]

    def decode(self, size_wh: SizeWH) -> Iterator[Decoded]:
        """Decode query by query; a region with a flaw is left out of its union."""
        for query in self.queries:
            mask = np.zeros(size_wh[::-1], dtype=bool)
            flaws, empty = [], []
            for where, region in query.regions:
                try:
                    part = region.decode(size_wh)
                except Flaw as flaw:
                    flaws.append((where, flaw))
                    continue
                mask |= part
                if not part.any():
                    empty.append(where)
            yield Decoded(
                text=query.text,
                mask=mask,
                is_absent=not query.regions,
                where=query.where,
                kind=query.kind,
                tag=query.tag,
                flaws=tuple(flaws),
                empty=tuple(empty),
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One picture and what is noted about it."""

    picture: Path
    annotation: Annotation
    file: Path
    """Where it is noted."""
    where: str
    size_wh: SizeWH | None = None
    """The picture's size as noted."""
    names: tuple[str, ...] = ()
    """Every query that the annotators looked for: what is not found of it is absent."""

    def open(self) -> Image.Image:
        """Decode the picture: RGB, upright.

        Raises:
            Flaw: It is missing, unreadable, or not of the size that is noted.
        """
        if not exists(self.picture):
            advice = _hint(self.picture) or "Add it, or take the entry out."
            raise Flaw("missing-file", f"{self.picture}: no such file", "a picture", advice)
        try:
            image = open_picture(self.picture).image
        except PictureError as error:
            expected = "a picture that can be decoded"
            raise Flaw("unreadable-picture", _first_sentence(error, self.picture), expected, "Replace it.") from error
        if self.size_wh is not None and self.size_wh != image.size:
            turned = " It is turned upright by its EXIF tag: the masks may be drawn on the picture as stored."
            raise Flaw(
                "size-differs",
                f"{self.picture.name} is {times(image.size)}",
                f"{times(self.size_wh)}, as noted",
                "Put the annotated version of the picture here, or correct the size."
                + (turned if self.size_wh == image.size[::-1] else ""),
            )
        return image


@dataclass
class Parsed:
    """What a reader makes of one split."""

    split: str
    file: Path
    records: list[Record] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def report(self, flaw: Flaw, where: str = "", file: Path | None = None) -> None:
        """Note what is wrong."""
        self.problems.append(flaw.at(file or self.file, where, self.split))


class OwnData(Sequence[Sample]):
    """Sample ``i`` is record ``i`` of one split; pictures and masks are decoded on access.

    A query whose mask has no pixel although something should be there is left out: it is neither there nor absent.
    Each sample's ``extra`` holds ``absent``: queries that the annotators looked for and did not find.

    Args:
        parsed: What a reader found.
        format: Its name.
        ignore: Kinds of problems, keys of `KINDS`, for which a region is left out of its mask. What else is wrong, and
            a picture that cannot be had, is an error on access.
    """

    def __init__(self, parsed: Parsed, format: str, *, ignore: Collection[str] = ()) -> None:
        self.split, self.format = parsed.split, format
        self.file = parsed.file
        self.records = tuple(parsed.records)
        self.ignore = frozenset(ignore)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        record = self.records[index]
        try:
            image = record.open()
            found, flaws = _decode(record, image.size)
            where, flaw = next(((place, flaw) for place, flaw in flaws if flaw.kind not in self.ignore), ("", None))
        except Flaw as error:
            where, flaw = "", error
        if flaw is not None:
            problem = flaw.at(record.file, where or record.where)
            raise DatasetError(f"{problem} `self1e data check` lists all problems.") from flaw
        return make_sample(record, image, found)

    def __repr__(self) -> str:
        return f"<OwnData {self.format} {self.split!r}: {len(self)} samples of {self.file}>"


def _decode(record: Record, size_wh: SizeWH) -> tuple[list[Decoded], list[tuple[str, Flaw]]]:
    """Decode every query; what is wrong with parts of it comes apart, and nothing at all is a `Flaw`."""
    found: list[Decoded] = []
    flaws: list[tuple[str, Flaw]] = []
    try:
        for decoded in record.annotation.decode(size_wh):
            found.append(decoded)
            flaws += decoded.flaws
    except Flaw as flaw:
        if flaw.kind != "unknown-class":  # of a map that holds nothing else
            raise
        flaws.append(("", flaw))
    return found, flaws


def make_sample(record: Record, image: Image.Image, found: Sequence[Decoded]) -> Sample:
    """Build a sample from what was decoded; empty masks of what should be there are left out.

    A picture in which nothing was found is asked about the names that are absent: a sample without any query would
    teach nothing.
    """
    targets = [
        Target(
            text=decoded.text,
            mask=decoded.mask,
            kind=decoded.kind or guess_kind(decoded.text),
            tag=decoded.tag or ("absent" if decoded.is_absent else ""),
        )
        for decoded in found
        if decoded.is_absent or decoded.mask.any()
    ]
    named = {decoded.text for decoded in found}
    absent = tuple(dict.fromkeys(name for name in record.names if name not in named))
    if not targets:  # nothing is there, and that is what can be asked
        nothing = np.zeros(image.size[::-1], dtype=bool)
        targets = [Target(text=name, mask=nothing, tag="absent") for name in absent]
    source = "/".join(part for part in (record.file.name, record.where.replace(" ", "-")) if part)
    return Sample(image=image, targets=tuple(targets), source=source, extra={"absent": absent})


def as_query(name: str) -> str:
    """Make a query of a class name: ``trash_can`` becomes "the trash can"."""
    words = " ".join(name.replace("_", " ").split())
    return f"the {words}" if without_article(words) == words else words


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        Flaw: It cannot be read.
    """
    try:
        return parse_json(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise Flaw(
            "unreadable-file", str(error.strerror or error), "a file to read", "Check its permissions."
        ) from error


def parse_json(content: bytes) -> Any:
    """Parse JSON in UTF-8, whatever the bytes are.

    Raises:
        Flaw: They are something else.
    """
    if content.startswith(b"\x1f\x8b"):
        raise Flaw("bad-record", "a file compressed by gzip", "JSON in UTF-8", "Unpack it: gunzip FILE.")
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        found = f"byte {error.start} is {content[error.start]:#04x}"
        raise Flaw("bad-record", f"not UTF-8: {found}", "JSON in UTF-8", "Save the file as UTF-8.") from error
    except RecursionError as error:
        raise Flaw("bad-record", "nested too deeply", "JSON with a few levels", "Write it anew.") from error
    except ValueError as error:
        raise Flaw("bad-record", f"not JSON: {error}", "JSON", "Correct it there, or write it anew.") from error


def exists(path: Path) -> bool:
    """Say whether a path leads to a file; names that no file can have lead to none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def find_file(folder: Path, name: str) -> Path:
    """Join a folder and a name in annotations, which other systems write otherwise: ``a\\b.png``, or "e" and an accent.

    The path as it is noted, where nothing is found.
    """
    path = folder / name
    if (name.isascii() and "\\" not in name) or exists(path):
        return path
    forms = [name, name.replace("\\", "/")]
    others = (folder / unicodedata.normalize(form, each) for each in forms for form in ("NFC", "NFD"))
    return next((other for other in others if exists(other)), path)


def is_text(value: Any) -> bool:
    """Say whether a JSON value holds words; half a surrogate pair is none, and no tokenizer takes it."""
    return (
        isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= letter <= "\udfff" for letter in value)
    )


def shown(value: Any) -> str:
    """Show a value in a message: short, on one line."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def times(size_wh: SizeWH) -> str:
    """Write a size as ``640x480``."""
    return f"{size_wh[0]}x{size_wh[1]}"


def is_number(value: Any) -> bool:
    """Say whether a JSON value is a finite number."""
    # Not `< inf`: a whole number may be too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def as_size(width: Any, height: Any) -> SizeWH | None:
    """Return a noted size if it is one."""
    if is_number(width) and is_number(height) and 1 <= width < 1e7 and 1 <= height < 1e7:
        return int(width), int(height)
    return None


def _hint(path: Path) -> str:
    """Guess what was meant by a picture that is missing; quickly, because all of them may be."""
    try:
        if not path.parent.is_dir():
            return f"There is no folder {path.parent} either: name the pictures' folder with --pictures."
    except (OSError, ValueError):
        return ""
    stem = path.name.removesuffix(path.suffix)
    endings = (ending for suffix in sorted(SUFFIXES) for ending in (suffix, suffix.upper()))
    other = next((f"{stem}{ending}" for ending in endings if exists(path.parent / f"{stem}{ending}")), None)
    return f"Did you mean {other!r}?" if other else ""


def _first_sentence(error: PictureError, path: Path) -> str:
    """Leave out what a picture's error advises: the problem has advice of its own."""
    told = str(error).removeprefix(f"{path}: ").split(". ")[0]
    return f"{path}: {told.rstrip('.')}"


Reader = Callable[[Path, str, Path | None], Parsed]
"""Reads one split: its file or folder, its name, and the folder of pictures if the user named one."""
