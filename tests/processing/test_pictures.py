"""Whatever people call a picture becomes upright RGB, or one kind of error that helps."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from self1e.errors import PictureError, SettingError
from self1e.processing.pictures import list_pictures, open_picture


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def colours(width: int = 6, height: int = 5) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(source: object) -> np.ndarray:
    opened = open_picture(source)
    assert type(opened.image) is Image.Image
    assert (opened.image.mode, opened.image.info) == ("RGB", {})
    return np.asarray(opened.image)


def test_every_kind_of_source_gives_the_same_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    colours().save(path)
    expected = np.asarray(colours())
    written = io.BytesIO()
    colours().save(written, "BMP")  # and left at its end
    tensor = torch.from_numpy(expected.copy())
    sources = [
        path, str(path), path.read_bytes(), bytearray(path.read_bytes()), written, colours(),
        Image.open(path), expected, expected.transpose(2, 0, 1), expected / 255,
        (expected / 255).astype(np.float32),
        expected.astype(np.uint16) * 257, tensor, tensor.permute(2, 0, 1), tensor / 255,
        (tensor.double() / 255).requires_grad_(),
    ]  # fmt: skip
    for source in sources:
        np.testing.assert_array_equal(pixels(source), expected)
    with path.open("rb") as file:
        np.testing.assert_array_equal(pixels(file), expected)
        assert open_picture(file).source == str(path)


def test_sources_are_named() -> None:
    assert open_picture(saved(colours(), "PNG")).source == "bytes"
    assert open_picture(colours()).source == "PIL picture"
    assert open_picture(np.asarray(colours())).source == "array"
    assert open_picture(torch.zeros(3, 4, 5)).source == "tensor"


def test_bfloat16_tensors_are_read() -> None:
    assert (pixels(torch.ones(3, 4, 5, dtype=torch.bfloat16)) == 255).all()


def test_the_callers_picture_is_not_shared() -> None:
    mine = colours()
    opened = open_picture(mine).image
    mine.paste("red", (0, 0, 6, 5))
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(colours()))
    array = np.zeros((4, 6, 3), np.uint8)
    opened = open_picture(array).image
    array[:] = 255
    assert not np.asarray(opened).any()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(orientation: int, kind: str) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16] = (255, 0, 0)  # red top left
    upright[8:, 16:] = (0, 0, 255)  # blue bottom right
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright), 7: np.rot90(upright, 2).transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    content = saved(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    opened = open_picture(content)
    for result in (opened, open_picture(opened.image), open_picture(Image.open(io.BytesIO(content)))):
        assert (result.image.size, result.notes) == ((32, 16), ())
        assert np.abs(np.asarray(result.image).astype(int) - upright).max() < 60


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_broken_exif_is_no_reason_to_fail(exif: bytes) -> None:
    content = saved(colours(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + exif)
    assert min(open_picture(content).image.size) == 5


def test_unreadable_exif_is_noted() -> None:
    class Odd(Image.Image):
        def getexif(self) -> Image.Exif:
            raise SyntaxError("not a TIFF file")

    odd = colours()
    odd.__class__ = Odd
    assert open_picture(odd).notes == ("EXIF unreadable: orientation ignored",)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LA", "PA", "La", "RGBa"]
)
def test_grey_stays_grey_in_every_mode(mode: str) -> None:
    steps = {"La": "LA", "RGBa": "RGBA", "PA": "P", "HSV": "RGB"}  # what PIL converts from
    white = Image.new("L", (5, 3), 255).convert("RGB").convert(steps.get(mode, mode)).convert(mode)
    assert white.mode == mode
    assert (pixels(white) == 255).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_not_composited(mode: str) -> None:
    image = Image.new(mode, (5, 3), (100, 100, 100, 0) if mode == "RGBA" else (100, 0))
    assert (pixels(saved(image, "PNG")) == 100).all()


def test_a_transparent_palette_keeps_its_colours() -> None:
    image = Image.new("P", (5, 3), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    for transparency in (1, bytes([255, 0])):
        content = saved(image, "PNG", transparency=transparency)
        assert (pixels(content) == (10, 20, 30)).all()


def test_lab_becomes_rgb() -> None:
    lab = Image.merge("LAB", [Image.new("L", (5, 3), value) for value in (255, 128, 128)])
    assert (pixels(lab) >= 250).all()


@pytest.mark.parametrize(
    ("values", "mode", "expected"),
    [
        ([0, 257, 32896, 65535], "I;16", [0, 1, 128, 255]),
        ([0, 100, 254, 255], "I", [0, 100, 254, 255]),
        ([0, 257, 32896, 65535], "I", [0, 1, 128, 255]),
        ([-100, 0, 50, 100], "I", [0, 128, 191, 255]),
        ([0, 0.5, 0.25, 1], "F", [0, 128, 64, 255]),
        ([0, 2, 254, 255], "F", [0, 2, 254, 255]),
        ([0, float("nan"), 0.5, 1], "F", [0, 0, 128, 255]),
        ([7, 7, 7, 7], "F", [7, 7, 7, 7]),
        ([1e6, 1e6, 1e6, 1e6], "F", [0, 0, 0, 0]),
    ],
)
def test_more_than_8_bits_are_scaled(values: list[float], mode: str, expected: list[int]) -> None:
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    image = Image.fromarray(np.array([values], dtype=dtype))
    assert image.mode == mode
    assert pixels(saved(image, "TIFF"))[0, :, 0].tolist() == expected


def test_16_bit_png_uses_its_full_range() -> None:
    image = Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16))
    assert pixels(saved(image, "PNG"))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame_and_a_note(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    opened = open_picture(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert opened.notes == ("holds several frames: only the first is used",)
    assert (np.asarray(opened.image) == (255, 0, 0)).all()


def refusal(source: object, **options: int) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PictureError) as caught:
            open_picture(source, **options)
    return str(caught.value)


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "kitchen.jpg").write_bytes(b"")
    assert "kitchne.jpg: no such file. Did you mean 'kitchen.jpg'?" in refusal(tmp_path / "kitchne.jpg")
    assert "There is no folder" in refusal(tmp_path / "a" / "b.jpg")
    assert "is a folder" in refusal(tmp_path)
    assert "is empty (0 bytes)" in refusal(tmp_path / "kitchen.jpg")
    assert "is empty (0 bytes)" in refusal(b"")
    assert "path of the picture is empty" in refusal("")
    assert "cannot be opened" in refusal("a\0b.jpg")
    assert len(refusal("x" * 100_000)) < 400


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")


def test_addresses_are_not_downloaded() -> None:
    assert "self1e does not download" in refusal("https://example.com/a.jpg")
    assert "data URL" in refusal("data:image/png;base64,AAAA")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello, this is text", "not a picture that can be read"),
        (b"%PDF-1.7 ...", "it is a PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is a PDF or PostScript"),
        (b'<?xml version="1.0"?><svg width="9"/>', "it is SVG"),
        (b"\n<!DOCTYPE html><html>404", "it is a web page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0heicmif1", "pip install pillow-heif"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "it is a video"),
    ],
)
def test_other_files_are_recognised(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    assert message in refusal(path)
    assert refusal(path).startswith(str(path))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_cut_short_files_are_refused(kind: str) -> None:
    content = saved(colours(64, 64), kind)
    assert "bytes: " in refusal(content[: len(content) // 2])


@settings(deadline=None)  # a busy machine is no failure
@given(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "PCX", "ICO", "QOI"]), st.data())
def test_damaged_files_raise_nothing_else(kind: str, data: st.DataObject) -> None:
    content = bytearray(saved(colours(32, 32), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        opened = open_picture(bytes(content), max_pixels=100_000)
    except PictureError as error:
        assert str(error).startswith("bytes: ")  # noqa: PT017 - either outcome is right
    else:
        assert opened.image.mode == "RGB"


def huge_png(width: int, height: int) -> bytes:
    """A header that promises more than follows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def test_size_is_checked_before_decoding() -> None:
    assert "5,000,000,000 pixels, more than max_pixels=178,956,970" in refusal(huge_png(100_000, 50_000))
    # Between Pillow's warning and its error: no warning, and our own limit.
    assert "12000x10000 is 120,000,000 pixels, more than max_pixels=1,000" in refusal(
        huge_png(12_000, 10_000), max_pixels=1000
    )
    for source in (saved(colours(), "PNG"), colours(), np.asarray(colours()), np.asarray(colours()).transpose(2, 0, 1)):
        assert "6x5 is 30 pixels, more than max_pixels=29" in refusal(source, max_pixels=29)
        assert open_picture(source, max_pixels=30).image.size == (6, 5)


@pytest.mark.parametrize("max_pixels", [None, 0, 10**12])
def test_the_limit_can_be_lifted_without_trace(max_pixels: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # so that a small picture is a bomb
    assert open_picture(saved(colours(), "PNG"), max_pixels=max_pixels).image.size == (6, 5)
    assert Image.MAX_IMAGE_PIXELS == 10
    assert "30 pixels" in refusal(saved(colours(), "PNG"))


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(SettingError, match="max_pixels=-1"):
        open_picture(colours(), max_pixels=-1)


def test_threads_leave_the_warning_filters_alone() -> None:
    before = list(warnings.filters)
    content = saved(colours(64, 64), "PNG")
    threads = [threading.Thread(target=lambda: [open_picture(content) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: np.zeros((7, 5, 2), np.uint8), r"array has shape (7, 5, 2), expected (H, W)"),
        (lambda: np.zeros((1, 3, 4, 5), np.uint8), "looks like a batch"),
        (lambda: np.zeros((0, 5, 3), np.uint8), "not one pixel"),
        (lambda: np.zeros(()), "has shape ()"),
        (lambda: np.zeros((4, 5), np.int64), "dtype int64, expected bool, uint8"),
        (lambda: np.full((4, 5), 255.0), "from 255 to 255, expected 0..1; divide by 255"),
        (lambda: np.full((4, 5), np.nan), "from nan to nan"),
        (lambda: torch.zeros(3, 4, 3), "either end could be channels"),
        (lambda: io.StringIO("text"), "gives str, expected bytes"),
        (lambda: 17, "Cannot read a picture from int"),
    ],
)
def test_what_cannot_be_a_picture_is_described(source: Callable[[], object], message: str) -> None:
    assert message in refusal(source())


def test_a_closed_file_is_described(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb+") as file:
        pass
    assert "cannot be read" in refusal(file)


def test_grey_and_bool_arrays_become_rgb() -> None:
    assert (pixels(np.ones((4, 5), bool)) == 255).all()
    assert pixels(np.full((4, 5, 1), 7, np.uint8)).shape == (4, 5, 3)
    assert pixels(np.zeros((3, 5, 3), np.uint8)).shape == (3, 5, 3)  # for arrays, channels are last


def test_pictures_are_listed_naturally(tmp_path: Path) -> None:
    names = ["p10.png", "p9.PNG", "deep/er/a.jpg", "notes.txt", "._p9.png", "odd[1].png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    expected = [tmp_path / name for name in ("deep/er/a.jpg", "odd[1].png", "p9.PNG", "p10.png")]
    assert list_pictures([tmp_path]) == expected
    assert list_pictures([f"{tmp_path}/*", str(tmp_path)]) == [*expected[1:], expected[0]]
    assert list_pictures([f"{tmp_path}/**/*.jpg"]) == expected[:1]
    assert list_pictures([tmp_path / "odd[1].png", str(tmp_path / "notes.txt")]) == [
        expected[1],
        tmp_path / "notes.txt",
    ]


def test_paths_without_pictures_are_named(tmp_path: Path) -> None:
    for path, message in [
        (tmp_path, "folder holds"),
        (tmp_path / "*.jpg", "pattern matches"),
        (tmp_path / "a.jpg", "path is"),
    ]:
        with pytest.raises(PictureError, match=f"this {message} no picture"):
            list_pictures([path])
    with pytest.raises(PictureError, match="No picture was named"):
        list_pictures([])
