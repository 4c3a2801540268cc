import numpy as np
import pytest
import torch
from PIL import Image

from self1e.errors import PictureError, SettingError
from self1e.processing.image import IMAGENET_MEAN, IMAGENET_STD, Self1EImageProcessor, choose_grid


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels).convert(mode)


def normalised(levels: np.ndarray) -> torch.Tensor:
    scaled = torch.from_numpy(levels.copy()).permute(2, 0, 1) / 255
    return (scaled - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]


@pytest.mark.parametrize(
    ("size_wh", "max_tiles", "grid"),
    [
        ((640, 480), 1, (1, 1)),
        ((640, 480), 6, (2, 3)),  # 3 columns, 2 rows
        ((480, 640), 6, (3, 2)),
        ((1000, 1), 12, (1, 12)),
        ((448, 448), 12, (1, 1)),
        ((2000, 2000), 12, (3, 3)),  # an exact tie: the picture is large enough for more tiles
    ],
)
def test_the_grid_is_the_nearest_aspect_ratio(size_wh, max_tiles, grid):
    assert choose_grid(size_wh, 448, max_tiles) == grid


@pytest.mark.parametrize("max_tiles", [0, 13, -1, 1.5, True, "4"])
def test_max_tiles_outside_1_to_12_is_an_error(images, max_tiles):
    with pytest.raises(SettingError, match=r"max_tiles=.* from 1 to 12"):
        choose_grid((10, 10), 448, max_tiles)
    with pytest.raises(SettingError, match="max_tiles"):
        images(picture(9, 9), max_tiles=max_tiles)
    with pytest.raises(SettingError, match="max_tiles"):
        Self1EImageProcessor(max_tiles=max_tiles)


def test_one_tile_is_a_bicubic_squash(images):
    source = picture(21, 13)
    found = images(source)
    expected = normalised(np.asarray(source.resize((8, 8), Image.Resampling.BICUBIC)))
    assert torch.equal(found["pixel_values"], expected[None])  # bit for bit: the look-up table divides
    assert found["pixel_values"].dtype == torch.float32
    assert found["pixel_values"].is_contiguous()


def test_tiles_are_cut_row_by_row_and_there_is_no_thumbnail(images):
    source = picture(30, 20)
    found = images(source, max_tiles=6)
    whole = normalised(np.asarray(source.resize((24, 16), Image.Resampling.BICUBIC)))
    expected = [whole[:, y : y + 8, x : x + 8] for y in (0, 8) for x in (0, 8, 16)]
    assert found["tile_grids"].tolist() == [[2, 3]]
    assert torch.equal(found["pixel_values"], torch.stack(expected))


def test_several_pictures_keep_their_order(images):
    wide, tall = picture(32, 16, seed=1), picture(15, 31, seed=2)
    found = images([wide, [tall]], max_tiles=2)
    assert found["tile_grids"].tolist() == [[1, 2], [2, 1]]
    assert found["original_sizes"].tolist() == [[16, 32], [31, 15]]
    assert found["num_tiles"].tolist() == [2, 2]
    assert {found[name].dtype for name in ("tile_grids", "original_sizes", "num_tiles")} == {torch.int64}
    alone = torch.cat([images(p, max_tiles=2)["pixel_values"] for p in (wide, tall)])
    assert torch.equal(found["pixel_values"], alone)


def test_alpha_is_dropped_not_composited(images):
    plain = picture(12, 9)
    clear = plain.copy()
    clear.putalpha(Image.new("L", plain.size, 0))
    assert torch.equal(images(clear)["pixel_values"], images(plain)["pixel_values"])


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA"])
def test_other_modes_become_rgb(images, mode):
    source = picture(12, 9, "RGB").convert("L").convert(mode) if mode == "LA" else picture(12, 9, mode)
    assert torch.equal(images(source)["pixel_values"], images(source.convert("RGB"))["pixel_values"])


def test_a_palette_with_transparency_does_not_warn(images):
    source = picture(12, 9, "P")
    source.info["transparency"] = bytes(range(256))
    assert images(source)["pixel_values"].shape == (1, 3, 8, 8)


def test_arrays_and_tensors_equal_the_picture(images):
    source = picture(12, 9)
    levels = np.asarray(source).copy()
    expected = images(source)["pixel_values"]
    for same in (
        levels,
        levels.transpose(2, 0, 1),
        torch.from_numpy(levels),
        torch.from_numpy(levels).permute(2, 0, 1),
    ):
        assert torch.equal(images(same)["pixel_values"], expected)
    assert torch.equal(images(levels[None])["pixel_values"], expected)
    assert torch.equal(images(levels[:, :, 0])["pixel_values"], images(levels[:, :, :1])["pixel_values"])


@pytest.mark.parametrize(
    "wrong", ["cup.jpg", 7, np.zeros((4, 4, 3)), np.zeros((5, 5, 2), np.uint8), np.zeros((0, 4), np.uint8)]
)
def test_what_is_not_a_picture_is_an_error(images, wrong):
    with pytest.raises(PictureError, match="Found"):
        images(wrong)


def test_settings_survive_saving(images, tmp_path):
    other = Self1EImageProcessor(size={"height": 12, "width": 12}, max_tiles=4, image_mean=[0.5, 0.4, 0.3])
    other(picture(9, 9))  # builds the table, which is not a setting
    other.save_pretrained(tmp_path)
    back = Self1EImageProcessor.from_pretrained(tmp_path)
    assert back.to_dict() == other.to_dict()
    assert (back.tile_size, back.max_tiles) == (12, 4)
    assert torch.equal(back(picture(30, 20))["pixel_values"], other(picture(30, 20))["pixel_values"])


def test_defaults_are_the_published_setting():
    default = Self1EImageProcessor()
    assert (default.tile_size, default.max_tiles) == (448, 1)
    assert tuple(default.image_mean) == (0.485, 0.456, 0.406)
    assert default.backend == "pil"
    assert default.get_number_of_image_patches(480, 640, {"max_tiles": 6}) == 6


def test_no_setting_is_ignored_silently(images):
    with pytest.raises(SettingError, match="do_resize"):
        images(picture(9, 9), do_resize=False)
    with pytest.raises(SettingError, match="thumbnail"):
        images(picture(9, 9), thumbnail=True)
    with pytest.raises(SettingError, match="return_tensors"):
        images(picture(9, 9), return_tensors="tf")
    with pytest.raises(SettingError, match="square"):
        Self1EImageProcessor(size={"height": 8, "width": 9})
    assert isinstance(images(picture(9, 9), return_tensors=None, do_resize=None)["pixel_values"], np.ndarray)
