"""``self1e figure`` draws from any model, and leaves the model as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import self1e
from self1e.cli.main import main
from self1e.errors import DatasetError, SettingError
from self1e.figures.attention import draw_attention
from self1e.figures.gallery import Entry, benchmark_entries, draw_gallery, read_entries
from self1e.figures.looking import RULES, look
from self1e.figures.sheet import Sheet
from self1e.figures.stages import draw_stages, full_size
from self1e.figures.vqa import Asked, answering, draw_vqa

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "noise.png"
    values = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    Image.fromarray(values).resize((140, 90)).save(path)
    return path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0)


def test_the_last_stage_is_the_mask_that_segment_gives(tiny_model, picture):
    image = Image.open(picture).convert("RGB")
    seen = look(tiny_model, image, "the cup", max_tiles=2)
    expected = tiny_model.segment(image, "the cup", max_tiles=2, exact="plain").mask()
    assert (full_size(seen.stages[-1].logits, image) == expected).mean() > 0.999
    assert [stage.logits.shape[0] for stage in seen.stages] == sorted(s.logits.shape[0] for s in seen.stages)
    assert [stage.note for stage in seen.stages][-2:] == ["interpolated", "amplified"]


@pytest.mark.parametrize(
    ("switches", "stages"),
    [
        ({}, 4),
        ({"unshuffle": "three"}, 4),
        ({"unshuffle": "one"}, 4),
        ({"unshuffle": "none"}, 3),
        ({"residual": False}, 2),
        ({"fine": "none"}, 2),
    ],
)
def test_a_model_with_other_switches_shows_the_stages_it_has(make_tiny_model, tmp_path, picture, switches, stages):
    model = self1e.load(make_tiny_model(tmp_path / "model", **switches), device="cpu")
    seen = look(model, Image.open(picture).convert("RGB"), "it")  # checks the last stage against the model
    assert len(seen.stages) == stages
    assert draw_stages(model, Image.open(picture).convert("RGB"), ["it"]).image.width > 300


def test_each_rule_lets_pixels_see_what_its_row_of_the_table_says(tiny_model, picture):
    image = Image.open(picture).convert("RGB")
    seen = {rule: look(tiny_model, image, "it", rule=rule) for rule in RULES}
    count = {rule: int(one.allowed.sum()) for rule, one in seen.items()}
    assert count["causal"] < count["image"] < count["image_seg"] < count["image_text"] < count["bidirectional"]
    first = seen["causal"]
    pixels, seg = np.flatnonzero(first.is_image), int(np.flatnonzero(first.is_seg)[0])
    assert not first.attention[:, pixels, seg].any()
    assert seen["image_seg"].attention[:, pixels, seg].all()
    assert first.picture_attention().shape == first.grid_hw
    rows = first.attention.sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


def test_looking_leaves_the_model_as_it_was(tiny_model, picture):
    config = tiny_model.model.config

    def state() -> list[str]:
        parts = (config, config.text_config, config.vision_config)
        return [config.attention, *(part._attn_implementation for part in parts)]

    before = state()
    draw_attention(tiny_model, Image.open(picture).convert("RGB"), ["it"], layer=1)
    assert state() == before


def test_attention_of_several_tiles_is_stitched_as_the_picture_is(tiny_model, picture):
    seen = look(tiny_model, Image.open(picture).convert("RGB"), "it", max_tiles=2)
    assert seen.tile_grid == (1, 2)
    weights = seen.picture_attention(-1)
    height, width = seen.grid_hw
    assert width == 2 * height
    flat = seen.attention[-1, int(np.flatnonzero(seen.is_seg)[0]), torch.from_numpy(seen.is_image)]
    first = flat[: height * height].reshape(height, height)  # the left tile comes first
    torch.testing.assert_close(weights[:, :height], first)


@pytest.mark.parametrize("layer", [0, 3, -3])
def test_a_layer_that_is_not_there_is_refused(tiny_model, picture, layer):
    with pytest.raises(SettingError, match="layers 1 to 2"):
        draw_attention(tiny_model, Image.open(picture).convert("RGB"), ["it"], layer=layer, rules=("causal",))


def test_the_commands_write_pictures(tiny_model_folder, picture, tmp_path, capsys):
    model = str(tiny_model_folder)
    listing = tmp_path / "list.jsonl"
    entry = {"picture": str(picture), "query": "the cup, please"}
    listing.write_text(f"{json.dumps(entry)}\n\n{json.dumps(entry)}\n", "utf-8")
    for arguments in (
        ["stages", str(picture), "-q", "a", "-q", "b"],
        ["attention", str(picture), "-q", "a", "--layer", "mean"],
        ["gallery", str(listing), "--columns", "2"],
    ):
        out = tmp_path / f"{arguments[0]}.png"
        assert run("figure", *arguments, "--model", model, "--device", "cpu", "--out", str(out)) == 0
        with Image.open(out) as image:
            assert image.mode == "RGBA"
            assert image.width > 400
        assert str(out) in capsys.readouterr().err.replace("\n", "")


def test_wrong_settings_are_told_before_a_model_is_loaded(picture, tmp_path, capsys):
    missing = "no-such-model"
    assert run("figure", "stages", str(picture), "-q", "a", "-m", missing, "--out", "figure.jpg") == 2
    assert "PNG" in capsys.readouterr().err
    assert run("figure", "attention", str(picture), "-q", "a", "-m", missing, "--layer", "top") == 2
    assert "'top'" in capsys.readouterr().err
    assert run("figure", "gallery", "scenes/tets", "-m", missing, "--out", str(tmp_path / "a.png")) == 2
    assert "Did you mean 'scenes/test'" in capsys.readouterr().err


def test_a_gallery_of_a_benchmark_has_truths(tiny_model):
    entries = benchmark_entries("scenes/test", [], 3)
    assert [len(entry.truth) for entry in entries] == [1, 1, 1]
    plain = draw_gallery(tiny_model, [type(entries[0])(picture=e.picture, queries=e.queries) for e in entries])
    assert draw_gallery(tiny_model, entries).image.width > 1.5 * plain.image.width


def test_a_gallery_of_classes_colours_every_pixel(tiny_model):
    (entry,) = benchmark_entries("scenes-classes/test", [], 1)
    assert entry.is_class_map
    assert draw_gallery(tiny_model, [entry]).image.width > 400


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "picture,words\na.png,cup\n", "line 2 has no picture or no query"),
        ("a.jsonl", '{"picture": "a.png"\n', "line 1 is no JSON"),
        ("a.jsonl", '{"picture": "a.png", "query": "cup"}\n', "no picture"),
        ("a.csv", "picture,query\n", "lists no picture"),
    ],
)
def test_a_bad_list_says_which_line(tmp_path, name, content, told):
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(DatasetError, match=told):
        read_entries(tmp_path / name)


def test_a_benchmark_of_questions_is_no_gallery():
    with pytest.raises(SettingError, match="no masks"):
        benchmark_entries("scenes-questions/test", [], 2)


def test_figures_are_the_same_twice(tiny_model: Any, picture):
    image = Image.open(picture).convert("RGB")
    first, second = (draw_stages(tiny_model, image, ["it"]).card().tobytes() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("size", [(1, 1), (4000, 3), (3, 4000)])
def test_pictures_of_odd_shapes_are_drawn(tiny_model, tmp_path, size):
    path = tmp_path / "odd.png"
    Image.new("RGB", size, (200, 30, 30)).save(path)
    image = Image.open(path).convert("RGB")
    sheets = [
        draw_stages(tiny_model, image, ["the cup"]),
        draw_attention(tiny_model, image, ["the cup"], rules=("causal",)),
        draw_gallery(tiny_model, [Entry(picture=path, queries=("a cup with a long name",))], title="A cup, tiny"),
        draw_vqa([("one", answering(tiny_model, max_new_tokens=2))] * 2, [Asked(picture=path, question="What?")]),
    ]
    for sheet in sheets:
        assert min(sheet.image.size) > 100
        assert sheet.image.width >= 2 * 22 + Sheet.measure("A cup, tiny", 17)  # the title is not cut
