"""Damaged, hostile and odd files, each under limits of memory and time, far from torch.

The files lie in ``SELF1E_BAD_IMAGES``, or beside the repository in ``../shared/data/4_bad_images``; a
``pillow_behaviour.json`` in the folder says what Pillow makes of them. Where the folder is missing, these tests skip
and say so; on a build machine (``CI`` set) they fail. Those that make their own files always run.
"""

from __future__ import annotations

import io
import json
import os
import queue
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from self1e.errors import PictureError
from self1e.processing import pictures
from self1e.processing.limits import BYTES_PER_PIXEL, PictureLimits
from self1e.processing.pictures import open_picture

SECONDS = 20
"""For one file, on a busy machine; each takes milliseconds."""

CHILD = """
import json, resource, sys
from PIL import Image
from self1e.errors import PictureError
from self1e.processing.limits import PictureLimits
from self1e.processing.pictures import open_picture

limits = json.loads(sys.argv[1])
Image.init()
held = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmSize"))
most = held + PictureLimits(**limits).peak_bytes
resource.setrlimit(resource.RLIMIT_AS, (most, most))
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    path = json.loads(line)
    print(json.dumps({"start": path}), flush=True)
    try:
        opened = open_picture(path, **limits)
        found = {"size": opened.image.size, "mode": opened.image.mode, "notes": opened.notes}
    except PictureError as error:
        found = {"error": str(error)}
    print(json.dumps(found | {"modules": sorted({"torch", "transformers"} & set(sys.modules))}), flush=True)
"""


@pytest.fixture(scope="module")
def folder(find_shared) -> Path:
    return find_shared("SELF1E_BAD_IMAGES", "data/4_bad_images")


class Child:
    """A process that opens pictures one by one, and is replaced when one of them ends it."""

    def __init__(self, limits: dict[str, Any]) -> None:
        self.limits = limits
        self.process: Any = None
        self.answers: queue.Queue[str] = queue.Queue()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def open(self, path: Path) -> dict[str, Any]:
        """What came of one file: a size, an error, or what it did to the process."""
        if self.process is None:
            self._start()
        self.process.stdin.write(json.dumps(str(path)) + "\n")
        self.process.stdin.flush()
        if self._answer() != {"start": str(path)}:
            return {"crash": "before it was opened", "stderr": self._stop()}
        found = self._answer()
        if found is None:
            return {"crash": f"ended or silent for {SECONDS} s", "stderr": self._stop()}
        return found

    def _start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps(self.limits)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.answers = queue.Queue()
        threading.Thread(target=self._listen, args=(self.process, self.answers), daemon=True).start()
        assert json.loads(self.answers.get(timeout=120)) == "ready"

    @staticmethod
    def _listen(process: Any, answers: queue.Queue[str]) -> None:
        for line in process.stdout:
            answers.put(line)
        answers.put("null")

    def _answer(self) -> Any:
        try:
            return json.loads(self.answers.get(timeout=SECONDS))
        except queue.Empty:
            return None

    def _stop(self) -> str:
        if self.process is None:
            return ""
        process, self.process = self.process, None
        process.kill()
        told = process.stderr.read()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
        return told[-2000:]


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    started: list[Child] = []

    def start(**limits: Any) -> Child:
        started.append(Child({"max_pixels": 25_000_000, "max_bytes": 50_000_000, "max_seconds": 10} | limits))
        return started[-1]

    yield start
    for one in started:
        one.__exit__()


def expected_size(known: dict[str, Any]) -> list[int] | None:
    """Size of the upright picture, or None where Pillow refuses it."""
    if known.get("load") != "ok":
        return None
    width, height = known["size"]
    return [height, width] if known.get("orientation") in (5, 6, 7, 8) else [width, height]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory need Linux")
def test_every_bad_picture_has_the_right_size_or_a_clear_error(folder: Path, child: Callable[..., Child]) -> None:
    record = folder / "pillow_behaviour.json"
    known = json.loads(record.read_text("utf-8"))["files"] if record.is_file() else {}
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in (record,)]
    paths = [path for path in paths if path.name != "LICENSE"]
    assert len(paths) >= max(len(known), 1)
    problems = {}
    with child() as process:
        for path in paths:
            name = path.relative_to(folder).as_posix()
            found = process.open(path)
            size = expected_size(known.get(name, {}))
            if "crash" in found:
                problems[name] = found
            elif found["modules"]:
                problems[name] = f"imported {found['modules']}"
            elif "size" in found:
                if found["mode"] != "RGB" or (name in known and found["size"] != size):
                    problems[name] = f"{found}, expected {size}"
            elif size is not None or not found["error"].startswith(f"{path}: ") or "\n" in found["error"]:
                problems[name] = f"{found}, expected {size}"
    assert problems == {}


def test_a_file_that_hangs_or_crashes_would_be_named(
    tmp_path: Path, child: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SECONDS", 2)
    Image.new("RGB", (5, 4)).save(tmp_path / "good.png")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(
        sys.modules[__name__], "CHILD", CHILD.replace("open_picture(path, **limits)", "open_picture(open(path, 'rb'))")
    )
    with child() as process:
        found = process.open(tmp_path / "good.png")
        assert found.get("size") == [5, 4], found
        assert "crash" in process.open(tmp_path / "pipe")  # opening it so waits for ever
        assert process.open(tmp_path / "good.png")["size"] == [5, 4]


# ---------------------------------------------------------------------- files made here


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int) -> bytes:
    """A true one: all its pixels are there, a bit each."""
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + (side + 7) // 8) * 500) for _ in range(side // 500)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def icon(content: bytes) -> bytes:
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(content), 22) + content


def endless_jpeg(side: int) -> bytes:
    """Goes over its pixels again and again, 82 bytes each time."""
    file = io.BytesIO()
    Image.new("L", (side, side), 128).save(file, "JPEG", progressive=True)
    content = file.getvalue()[:-2]
    scan = content[content.rindex(b"\xff\xc4") :]
    return content + scan * (3_000_000 // len(scan)) + b"\xff\xd9"


def slow_qoi(side: int) -> bytes:
    """Pillow decodes it in Python, pixel by pixel."""
    return b"qoif" + struct.pack(">IIBB", side, side, 3, 0) + b"\x00" * side**2 + bytes(7) + b"\x01"


def unpacked_text() -> bytes:
    """Kilobytes of PNG with megabytes of comment."""
    packed = zlib.compress(bytes(2**21), 1)
    file = io.BytesIO()
    Image.new("L", (4, 3)).save(file, "PNG")
    content = file.getvalue()
    return content[:33] + chunk(b"zTXt", b"Comment\0\0" + packed) * 20 + content[33:]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory need Linux")
@pytest.mark.parametrize(
    ("name", "make", "told"),
    [
        ("bomb.png", lambda: png_bomb(20_000), "400,000,000 pixels, more than max_pixels=25,000,000"),
        ("small-bomb.png", lambda: png_bomb(6_000), "36,000,000 pixels, more than max_pixels=25,000,000"),
        ("bomb.ico", lambda: icon(png_bomb(6_000)), "36,000,000 pixels, more than max_pixels=25,000,000"),
        ("bomb-bmp.ico", lambda: icon(struct.pack("<Iii", 40, 9000, 18000) + bytes(99)), "9000x9000 is 81,000,000"),
        ("endless.jpg", lambda: endless_jpeg(1_000), "more than max_seconds=0.3 to decode"),
        ("slow.qoi", lambda: slow_qoi(2_000), "more than max_seconds=0.3 to decode"),
        ("text.png", unpacked_text, "is damaged: Decompressed data too large"),
        ("large.bmp", lambda: b"BM" + bytes(5_000_000), "5,000,002 bytes, more than max_bytes=5,000,000"),
    ],
)
def test_bombs_are_refused_in_bounded_memory_and_time(
    tmp_path: Path, child: Callable[..., Child], name: str, make: Callable[[], bytes], told: str
) -> None:
    (tmp_path / name).write_bytes(make())
    with child(max_seconds=0.3, max_bytes=5_000_000) as process:
        found = process.open(tmp_path / name)
    assert told in found.get("error", str(found))
    assert found["error"].startswith(str(tmp_path / name))


def wave(mode: str, side: int) -> Image.Image:
    steps = np.add.outer(np.arange(side), np.arange(side)) % 251
    if mode == "F":
        return Image.fromarray(steps.astype(np.float32) * 3.3)
    if mode == "I":
        return Image.fromarray(steps.astype(np.int32) * 70_000)
    if mode == "I;16":
        return Image.fromarray(steps.astype(np.uint16) * 257)
    return Image.fromarray(steps.astype(np.uint8)).convert("RGB").convert(mode)


MEASURE = """
import json, sys
from PIL import Image
from self1e.processing.pictures import open_picture

def memory(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))

Image.init()
open_picture(sys.argv[1])  # what is loaded with the first one is not the picture's
for path in sys.argv[2:]:
    open("/proc/self/clear_refs", "w").write("5")
    held = memory("VmRSS")
    size = open_picture(path).image.size
    print(json.dumps([path, *size, memory("VmHWM") - held]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_no_format_takes_more_memory_per_pixel_than_is_stated(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = [
        ("JPEG", "CMYK", {"progressive": True, "exif": turned}), ("PNG", "RGBA", {"exif": turned}),
        ("PNG", "I;16", {"exif": turned}), ("TIFF", "F", {"compression": "tiff_lzw", "tiffinfo": {278: 9999}}),
        ("WEBP", "RGBA", {"lossless": True, "method": 0, "exif": turned}),
    ]  # fmt: skip
    kinds += [("JPEG2000", "RGBA", {})] if features.check("jpg_2000") else []
    paths = [tmp_path / "first.png"]
    wave("RGB", 9).save(paths[0])
    for number, (kind, mode, options) in enumerate(kinds):
        paths.append(tmp_path / f"{number}.{mode}.{kind.lower()}")
        wave(mode, 1500).save(paths[-1], kind, **options)
    run = subprocess.run([sys.executable, "-c", MEASURE, *map(str, paths)], capture_output=True, text=True, check=True)
    taken = {
        Path(path).name: grown / (width * height)
        for path, width, height, grown in map(json.loads, run.stdout.splitlines())
    }
    assert len(taken) == len(kinds)
    assert min(taken.values()) > 3, "not measured: the picture itself takes 4"
    assert {name: grown for name, grown in taken.items() if grown > BYTES_PER_PIXEL} == {}


def test_limits_are_named_in_the_error_and_can_be_lifted(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 20)).save(path)
    count = path.stat().st_size
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        with pytest.raises(PictureError, match=f"{count:,} bytes, more than max_bytes={count - 1:,}"):
            open_picture(source, max_bytes=count - 1)
        assert open_picture(source, max_bytes=count).image.size == (30, 20)
        assert open_picture(source, max_pixels=None, max_bytes=0, max_seconds=None).image.size == (30, 20)
    assert PictureLimits(max_bytes=None).peak_bytes is None
    with pytest.raises(ValueError, match="max_seconds=-1"):
        open_picture(path, max_seconds=-1)
    with pytest.raises(ValueError, match="max_bytes=-5"):
        open_picture(path, max_bytes=-5)


def test_who_opens_pictures_ahead_is_asked_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (30, 20)).save(path)
    asked: list[tuple[int, int]] = []
    open_picture(path, admit=lambda width, height: asked.append((width, height)))
    assert asked == [(30, 20)]
    with pytest.raises(PictureError, match="more than max_pixels=5"):
        open_picture(path, max_pixels=5, admit=lambda width, height: asked.append((width, height)))
    assert asked == [(30, 20)]


def test_a_png_without_its_end_is_kept_and_one_without_pixels_is_not(tmp_path: Path) -> None:
    file = io.BytesIO()
    wave("RGB", 50).save(file, "PNG")
    content = file.getvalue()
    after = chunk(b"tIME", b"a date")
    opened = open_picture(content[:-12] + after[:10])
    assert opened.notes == ("its end is missing, after the last pixel",)
    np.testing.assert_array_equal(np.asarray(opened.image), np.asarray(wave("RGB", 50)))
    with pytest.raises(PictureError, match="cut short"):
        open_picture(content[: len(content) // 2])


def test_folders_that_cannot_be_searched_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.png").write_bytes(b"x")
    scan = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert pictures.list_pictures([tmp_path]) == [tmp_path / "a.png"]
    assert f"{tmp_path / 'closed'}: cannot be searched" in caplog.text


# ---------------------------------------------------------------------- through the model

ODD = [
    "pngsuite/basn3p01.png", "pngsuite/basn0g02.png", "pngsuite/basi4a16.png", "pngsuite/tbbn2c16.png",
    "pillow/tiff_strip_cmyk_jpeg.tif", "pillow/12bit.cropped.tif", "pillow/tRNS_null_1x1.png",
    "pillow/dispose_bgnd.gif", "pillow/hopper_orientation_6.jpg", "pillow/iss634.webp",
    "exif_orientation/Landscape_5.jpg",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_masks_of_odd_pictures_have_the_size_of_the_upright_picture(folder: Path, tiny_model: Any, name: str) -> None:
    if not (folder / name).is_file():
        pytest.skip(f"{name} is not in {folder}.")
    known = json.loads((folder / "pillow_behaviour.json").read_text("utf-8"))["files"][name]
    width, height = expected_size(known) or [0, 0]
    assert tiny_model.segment(folder / name, "the thing").masks.shape == (1, height, width)


@pytest.mark.parametrize("size_wh", [(1, 1), (3000, 1), (1, 3000), (2, 1)])
def test_masks_of_extreme_shapes(tiny_model: Any, size_wh: tuple[int, int]) -> None:
    masks = tiny_model.segment(Image.new("RGB", size_wh, "red"), ["the thing", "the other"], max_tiles=12).masks
    assert masks.shape == (2, size_wh[1], size_wh[0])


def test_memory_limits_of_these_tests_are_felt() -> None:
    """Otherwise the tests above would pass whatever a decoder takes."""
    code = (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))\n"
        "try:\n    bytearray(2**29)\nexcept MemoryError:\n    print('felt')"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "felt\n"
