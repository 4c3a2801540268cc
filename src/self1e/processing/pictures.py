"""Open any picture, from anywhere but the network: upright 8-bit RGB, or a PictureError that says why not.

Files are what people upload: huge, cut short, mislabelled, hostile. The size is checked before decoding, memory and
time are bounded (see ``self1e.processing.limits``), only formats that decode inside this process are tried (no
PostScript), every failure of a decoder becomes a ``PictureError``, and no warning leaks.
"""

from __future__ import annotations

import glob
import io
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from self1e.errors import PictureError, did_you_mean
from self1e.processing.colour import array_to_rgb, image_to_rgb
from self1e.processing.limits import MAX_BYTES, MAX_PIXELS, MAX_SECONDS, PictureLimits, WatchedFile, check_icon

_log = logging.getLogger(__name__)

# fmt: off
SUFFIXES = frozenset({
    ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo",
    ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tif", ".tiff", ".webp",
})
"""What a folder's files must be called for ``list_pictures`` to take them."""

_FORMATS = (
    "JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "AVIF", "TIFF", "PPM", "JPEG2000", "ICO", "QOI", "PCX",
    "HEIF",  # only where pillow-heif is installed and registered
)
# fmt: on

_JPEG_BLOCK = 2**13
"""Bytes that are decoded between two looks at the clock. A scan over all pixels may take 80."""

_PART = 2**20
"""Bytes of an open file that are read at once."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation. Not ``ImageOps.exif_transpose``: it also rewrites the EXIF, and fails on
a broken one, which is no reason to refuse a picture."""


@dataclass(frozen=True)
class OpenedPicture:
    """A picture as the model takes it."""

    image: Image.Image
    """RGB, upright, loaded, without metadata; the caller's own picture or array is never shared."""
    source: str
    """Its path, or what kind of thing it was."""
    notes: tuple[str, ...] = ()
    """What a person might want to know: only the first frame was used, the EXIF was unreadable."""


def open_picture(
    source: Any,
    *,
    max_pixels: int | None = MAX_PIXELS,
    max_bytes: int | None = MAX_BYTES,
    max_seconds: float | None = MAX_SECONDS,
    admit: Callable[[int, int], None] | None = None,
) -> OpenedPicture:
    """Open a picture.

    Args:
        source: A path, bytes, an open binary file, a PIL picture, a numpy array (``(H, W)``, ``(H, W, c)`` or,
            where that cannot be meant, ``(c, H, W)``; bool, uint8, uint16, or float in 0..1) or a torch tensor
            (``(3, H, W)`` or ``(H, W, 3)``; uint8, or float in 0..1).
        max_pixels: Width times height that is still decoded; None or 0 for no limit.
        max_bytes: Size of a file that is still read; None or 0 for no limit.
        max_seconds: Processor time that decoding a file may take; None or 0 for no limit. It is looked at whenever
            the decoder reads on, so a picture may overrun it a little.
        admit: Called with width and height when these are known and allowed, before anything is decoded. Whoever
            opens pictures ahead of their use can wait in it until there is memory, or raise to give up.

    Raises:
        PictureError: It cannot be read or is too large; the message names it, what was found and what to do.
        SettingError: A limit is negative.
    """
    limits = PictureLimits(max_pixels=max_pixels, max_bytes=max_bytes, max_seconds=max_seconds)
    door = _Door(limits, admit)
    if isinstance(source, Image.Image):
        return _open_image(source, door)
    if isinstance(source, bytes | bytearray | memoryview):
        limits.check_bytes(memoryview(source).nbytes, "bytes")
        return _open_file(io.BytesIO(source), "bytes", door)
    if isinstance(source, str | os.PathLike):
        name = os.fsdecode(source)
        with _checked_path(name) as file:
            limits.check_bytes(os.fstat(file.fileno()).st_size, name)
            return _open_file(file, name, door)
    if hasattr(source, "read"):
        return _open_file(_rewound(source, limits), _name_of(source, "file object"), door)
    if hasattr(source, "detach") or hasattr(source, "__array__"):
        return _open_array(source, door)
    raise PictureError(
        f"Cannot read a picture from {type(source).__name__}: pass a path, bytes, an open file, a PIL picture, "
        "a numpy array or a torch tensor."
    )


@dataclass(frozen=True)
class _Door:
    """Decides about a picture whose size is known and whose pixels are not yet decoded."""

    limits: PictureLimits
    admit: Callable[[int, int], None] | None

    def pass_through(self, width: int, height: int, name: str) -> None:
        self.limits.check_size(width, height, name)
        if self.admit is not None:
            self.admit(width, height)


def list_pictures(paths: Sequence[str | Path]) -> list[Path]:
    """Expand files, folders and patterns to picture files, each once.

    A file is taken whatever its name; folders are searched to any depth, and like patterns (``*``, ``**``)
    give only files with a picture's suffix, in natural order: ``9.png`` before ``10.png``.

    Raises:
        PictureError: One of ``paths`` gives nothing.
    """
    found: dict[Path, None] = {}
    for path in paths:
        matches = _expand(path)
        if not matches:
            kind = (
                "folder holds" if Path(path).is_dir() else "pattern matches" if glob.has_magic(str(path)) else "path is"
            )
            raise PictureError(
                f"{path}: this {kind} no picture. Looked for files ending in {', '.join(sorted(SUFFIXES))}."
            )
        found.update(dict.fromkeys(matches))
    if not found:
        raise PictureError("No picture was named: pass at least one file, folder or pattern.")
    return list(found)


def _expand(path: str | Path) -> list[Path]:
    if Path(path).is_file():
        return [Path(path)]
    if Path(path).is_dir():
        matches = [Path(folder, name) for folder, _, names in os.walk(path, onerror=_left_out) for name in names]
    else:
        names = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        matches = [Path(name) for name in names if Path(name).is_file()]
    # "._x.jpg" is what macOS leaves beside x.jpg on foreign disks: not a picture.
    pictures = [match for match in matches if match.suffix.lower() in SUFFIXES and not match.name.startswith(".")]
    return sorted(pictures, key=_natural)


def _left_out(error: OSError) -> None:
    """Say so when a folder within a folder may not be entered: its pictures would be missed silently."""
    _log.warning("%s: cannot be searched for pictures, left out: %s", error.filename, error.strerror)


def _natural(path: Path) -> list[str | int]:
    parts = re.split(r"(\d+)", str(path).casefold())  # text and number in turn, so that keys compare
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _checked_path(name: str) -> io.BufferedReader:
    """Open a regular file."""
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", name):
        raise PictureError(
            f"{name}: this is an address, and self1e does not download. Fetch it, then pass the file or its bytes."
        )
    if name.startswith("data:"):
        raise PictureError(f"{name[:40]}...: this is a data URL. Pass base64.b64decode(what follows the comma).")
    if not name:
        raise PictureError("The path of the picture is empty.")
    shown = name if len(name) < 300 else name[:60] + "..."
    try:
        path = Path(name)
        if path.is_dir():
            raise PictureError(f"{shown}: is a folder, expected a file. `list_pictures` finds the pictures in it.")
        if path.exists() and not path.is_file():  # reading a pipe or a device may never end
            raise PictureError(f"{shown}: is not a regular file.")
        return path.open("rb")
    except FileNotFoundError as error:
        raise PictureError(f"{shown}: no such file.{_similar(Path(name))}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error  # without the name, which may be endless
        raise PictureError(f"{shown}: cannot be opened: {reason}.") from error


def _similar(path: Path) -> str:
    """Suggest a neighbour's name, for a typing error."""
    try:
        neighbours = [entry.name for entry in islice(path.parent.iterdir(), 2000)]
    except OSError:
        return f" There is no folder {path.parent} either."
    return did_you_mean(path.name, neighbours, cutoff=0.75)


def _rewound(file: Any, limits: PictureLimits) -> io.BytesIO:
    """Read an open file from its beginning: whoever has just written it stands at its end."""
    name = _name_of(file, "file object")
    content = io.BytesIO()
    try:
        if not hasattr(file, "seekable") or file.seekable():
            file.seek(0)
        while part := file.read(_PART):  # not all at once: for `read(n)` Python sets n bytes aside
            if not isinstance(part, bytes):
                raise PictureError(f"{name}: gives {type(part).__name__}, expected bytes. Open it in mode 'rb'.")
            content.write(part)
            limits.check_bytes(content.tell(), name, "at least ")
        content.seek(0)
    except PictureError:
        raise
    except Exception as error:  # any object with a `read` comes here
        raise PictureError(f"{name}: cannot be read: {_told(error)}.") from error
    return content


def _name_of(thing: Any, otherwise: str) -> str:
    name = getattr(thing, "filename", None) or getattr(thing, "name", None)
    return os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else otherwise


def _open_file(file: io.BufferedReader | io.BytesIO, name: str, door: _Door) -> OpenedPicture:
    head = file.read(4096)
    if not head:
        raise PictureError(f"{name}: the file is empty (0 bytes). Copy or download it again.")
    check_icon(file, name, door.limits)
    file.seek(0)
    Image.init()  # otherwise only five formats are known
    formats = [known for known in _FORMATS if known in Image.OPEN]
    watched: Any = WatchedFile(file, name, door.limits)
    with decoding(name, door.limits.max_pixels):
        try:
            image = Image.open(watched, formats=formats)
        except Image.UnidentifiedImageError as error:
            raise PictureError(f"{name}: not a picture that can be read{_looks_like(head)}.") from error
        return _finish(image, name, door)


def _open_image(image: Image.Image, door: _Door) -> OpenedPicture:
    name = _name_of(image, "PIL picture")
    with decoding(name, door.limits.max_pixels):
        return _finish(image, name, door)


def _open_array(source: Any, door: _Door) -> OpenedPicture:
    is_tensor = hasattr(source, "detach")
    name = "tensor" if is_tensor else "array"
    if is_tensor:
        source = source.detach().cpu()
        if "bfloat16" in str(source.dtype):  # numpy has none
            source = source.float()
    array = np.asarray(source)
    if array.ndim >= 2:
        sides = sorted(array.shape)[-2:]
        door.pass_through(sides[1], sides[0], name)
    return OpenedPicture(array_to_rgb(array, name, is_tensor=is_tensor), name)


def _finish(image: Image.Image, name: str, door: _Door) -> OpenedPicture:
    """Decode, turn upright and convert."""
    door.pass_through(*image.size, name)
    notes: list[str] = []
    if isinstance(image, PngImageFile):
        _forgive_a_missing_end(image, notes)
    if isinstance(image, JpegImageFile):
        image.decodermaxblock = _JPEG_BLOCK
    image.load()
    try:
        # After loading: TIFF, AVIF and HEIF are turned by their decoders, which then remove the tag.
        turn = upright_turn(image)
    except Exception:  # parsers of EXIF and XMP fail in many ways
        turn = None
        notes.append("EXIF unreadable: orientation ignored")
    rgb = image_to_rgb(image)
    if turn is not None:
        rgb = rgb.transpose(turn)
    try:
        if getattr(image, "is_animated", False):
            notes.append("holds several frames: only the first is used")
    except Exception:  # the second frame is broken; the first is what we need
        notes.append("holds several frames, some unreadable: only the first is used")
    return OpenedPicture(rgb, name, tuple(notes))


def upright_turn(image: Image.Image) -> Image.Transpose | None:
    """Find what undoes a picture's EXIF orientation; parsers of broken EXIF raise many things."""
    orientation = image.getexif().get(0x0112)
    return _UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _forgive_a_missing_end(image: Any, notes: list[str]) -> None:
    """Keep a PNG whose pixels are all there, and which ends in the middle of what follows them."""
    read_end = image.load_end

    def load_end() -> None:
        try:
            read_end()
        except OSError:
            notes.append("its end is missing, after the last pixel")

    image.load_end = load_end


def _looks_like(head: bytes) -> str:
    """Guess what a file is instead, from its beginning."""
    start = head.lstrip()[:200].lower()
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        return (
            ": it is HEIC. `pip install pillow-heif` and call pillow_heif.register_heif_opener(), or convert it to JPEG"
        )
    if start.startswith(b"%pdf") or start.startswith(b"%!ps"):
        return ": it is a PDF or PostScript document. Render the page to PNG first"
    if b"<svg" in start:
        return ": it is SVG, a drawing without pixels. Render it to PNG first"
    if start.startswith((b"<!doctype html", b"<html")):
        return ": it is a web page, perhaps one that was saved in place of the picture"
    if head[4:8] == b"ftyp" or head[:4] == b"\x1aE\xdf\xa3":
        return ": it is a video or a format unknown here. Save a frame as PNG or JPEG first"
    return ". Save it as PNG or JPEG; if it should be one already, it is damaged"


def _told(error: BaseException) -> str:
    return str(error).rstrip(".") or type(error).__name__


@contextmanager
def decoding(name: str, limit: int | None) -> Iterator[None]:
    """Turn whatever a decoder raises into a PictureError, and let no warning out."""
    lift = not limit or limit > MAX_PIXELS
    try:
        with _quiet, _unlimited if lift else nullcontext():
            yield
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        # Found by Pillow before the size is ours to see, or in a frame larger than its picture.
        size = re.search(r"\((\d+) pixels\)", str(error))
        pixels = f"{int(size[1]):,} pixels" if size else _told(error)
        raise PictureError(
            f"{name}: {pixels}, more than max_pixels={limit or MAX_PIXELS:,}. "
            "Make the picture smaller, or raise the limit if you trust it."
        ) from error
    except MemoryError as error:
        raise PictureError(f"{name}: does not fit into memory. Make the picture smaller.") from error
    except Exception as error:  # decoders raise a dozen types: SyntaxError, struct.error, EOFError, KeyError ...
        cut = "truncated" in str(error).lower() or isinstance(error, EOFError)
        what = "is cut short, or damaged" if cut else "is damaged"
        raise PictureError(f"{name}: {what}: {_told(error)}. Copy or download it again.") from error


class _Shared:
    """Process-wide state that several threads need at once: the first one in sets it, the last one out resets it.

    Filters for warnings and Pillow's limit belong to the process. A lock around every decoding would make
    threads wait for each other, and each saving and restoring on its own would restore another's state.
    """

    def __init__(self, state: Callable[[], AbstractContextManager[None]]) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._users = 0
        self._stack = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._stack.enter_context(self._state())
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._stack.close()


@contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _without_pillow_limit() -> Iterator[None]:
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


_quiet = _Shared(_without_warnings)
_unlimited = _Shared(_without_pillow_limit)
