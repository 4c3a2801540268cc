"""Readers of photographs, on folders made here."""

import json

import numpy as np
import pytest
from PIL import Image

from self1e.data.clothing import Clothing
from self1e.data.coco import REDISTRIBUTABLE, CocoCategories
from self1e.errors import DatasetError

CLASSES = ["null", "hat", "shoes", "skin", "t-shirt"]


@pytest.fixture
def ccp(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "classes.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(CLASSES)))
    (tmp_path / "train.txt").write_text("a\n")
    labels = np.zeros((6, 4), np.uint8)
    labels[0, :2], labels[1, 1:3], labels[2:4, 1:3] = 1, 3, 4
    Image.fromarray(labels).save(tmp_path / "masks" / "a.png")
    Image.new("RGB", (4, 6), "red").save(tmp_path / "images" / "a.jpg")
    return tmp_path


def test_clothing_reads_parts_and_adds_groups(ccp):
    sample = Clothing(ccp)[0]
    masks = {target.text: target.mask for target in sample.targets}
    assert list(masks) == ["the hat", "the skin", "the t-shirt", "the person", "the clothes", "the headwear"]
    assert masks["the person"].sum() == 2 + 2 + 4
    assert np.array_equal(masks["the clothes"], masks["the t-shirt"])  # skin is no clothing
    assert sample.extra["absent"] == ("the shoes", "the footwear")


def test_clothing_names_a_mask_of_another_size(ccp):
    Image.new("RGB", (5, 6)).save(ccp / "images" / "a.jpg")
    with pytest.raises(DatasetError, match=r"ccp/train/a: the mask is 4x6 but the photograph 5x6"):
        Clothing(ccp)[0]


def test_a_missing_split_says_what_is_expected(tmp_path):
    with pytest.raises(DatasetError, match=r"No train\.txt"):
        Clothing(tmp_path)


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").mkdir()
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (10, 8)).save(tmp_path / "train" / name)
    square = [[1, 1, 5, 1, 5, 5, 1, 5]]
    overlapping = [[3, 3, 7, 3, 7, 7, 3, 7]]
    annotations = [
        {"image_id": 1, "category_id": 7, "segmentation": square},
        {"image_id": 1, "category_id": 7, "segmentation": overlapping},
        {"image_id": 1, "category_id": 9, "segmentation": {"size": [8, 10], "counts": [0, 8, 72]}},
        {"image_id": 2, "category_id": 9, "segmentation": square},
    ]
    found = {
        "images": [
            {"id": 1, "file_name": "1.jpg", "width": 10, "height": 8, "license": 4},
            {"id": 2, "file_name": "2.jpg", "width": 10, "height": 8, "license": 3},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 9, "name": "cat"}, {"id": 11, "name": "bird"}],
        "annotations": annotations,
    }
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(found))
    return tmp_path


def test_coco_unites_the_objects_of_a_category(coco):
    sample = CocoCategories(coco, "train")[0]
    masks = {target.text: target.mask for target in sample.targets}
    assert list(masks) == ["the cat", "the dog"]
    assert masks["the dog"].sum() == 16 + 16 - 4  # a union, not a sum
    assert masks["the cat"][:, 0].all()
    assert not masks["the cat"][:, 1:].any()
    assert sample.extra["absent"] == ("the bird",)


def test_coco_keeps_to_licences(coco):
    assert len(CocoCategories(coco, "train")) == 2
    assert [image["id"] for image in CocoCategories(coco, "train", licences=REDISTRIBUTABLE).images] == [1]
