"""The task of transformers' pipelines, registered by importing ``self1e.model``."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import transformers

import self1e.model
from self1e.errors import PromptError, SettingError

TASK: Any = "text-guided-segmentation"


@pytest.fixture(scope="module")
def segment(tiny_model_folder):
    return transformers.pipeline(TASK, model=str(tiny_model_folder), device="cpu")


def test_label_score_and_mask_per_query(segment, tiny_model, pictures):
    found = segment(pictures[0], queries=["the red block", "blue"])
    expected = tiny_model.segment(pictures[0], ["the red block", "blue"])
    assert [one["label"] for one in found] == ["the red block", "blue"]
    for one, score, mask in zip(found, expected.scores, expected.masks, strict=True):
        assert one["score"] == pytest.approx(float(score), abs=1e-6)
        assert one["mask"].mode == "L"
        np.testing.assert_array_equal(np.asarray(one["mask"]), mask * np.uint8(255))


def test_lists_and_generators_of_pictures(segment, pictures):
    several = segment(pictures, queries="blue", batch_size=2)
    assert [one[0]["mask"].size for one in several] == [picture.size for picture in pictures]
    lazy = segment((picture for picture in pictures), queries="blue")
    assert [len(one) for one in lazy] == [1] * 4


def test_paths_and_settings(segment, pictures, tmp_path):
    pictures[2].save(tmp_path / "p.png")
    found = segment(str(tmp_path / "p.png"), queries="blue", max_tiles=4, threshold=1e9)
    assert not np.asarray(found[0]["mask"]).any()
    assert found[0]["score"] == 0


def test_a_model_object_with_its_processor(tiny_model, pictures):
    segment = transformers.pipeline(TASK, model=tiny_model.model, processor=tiny_model.processor, device="cpu")
    assert len(segment(pictures[0], queries=["a", "b"])) == 2


def test_a_model_object_finds_its_processor_where_it_came_from(tiny_model, pictures):
    segment = transformers.pipeline(TASK, model=tiny_model.model, device="cpu", queries=["a", "b"])
    assert len(segment(pictures[0])) == 2


def test_what_is_missing_or_unknown(segment, tiny_model_folder, pictures):
    with pytest.raises(PromptError, match="queries="):
        segment(pictures[0])
    with pytest.raises(PromptError, match="empty query"):
        segment(pictures[0], queries="")
    with pytest.raises(SettingError, match="Unexpected colour"):
        segment(pictures[0], queries="x", colour="red")


def test_saving_writes_model_and_processor_and_no_code(segment, tmp_path, pictures):
    segment.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert "custom_pipelines" not in json.loads((tmp_path / "config.json").read_text())
    again = transformers.pipeline(TASK, model=str(tmp_path), device="cpu")
    assert again(pictures[0], queries="blue")[0]["score"] == segment(pictures[0], queries="blue")[0]["score"]


def test_auto_classes_find_ours(tiny_model_folder):
    assert type(transformers.AutoConfig.from_pretrained(tiny_model_folder)) is self1e.Self1EConfig
    processor = transformers.AutoProcessor.from_pretrained(tiny_model_folder)
    assert type(processor) is self1e.Self1EProcessor
    assert type(processor.image_processor) is self1e.Self1EImageProcessor
    assert type(transformers.AutoImageProcessor.from_pretrained(tiny_model_folder)) is self1e.Self1EImageProcessor
    for auto in (transformers.AutoModel, transformers.AutoModelForImageTextToText):
        assert type(auto.from_pretrained(tiny_model_folder)) is self1e.Self1EForConditionalGeneration
