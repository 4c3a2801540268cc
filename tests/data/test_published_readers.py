"""Readers of the published layout, on small trees made here."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from self1e.data.class_names import ADE20K, COCO_STUFF
from self1e.data.files import Chosen, CocoPictures
from self1e.data.reason import ReasonSeg
from self1e.data.referring import Referring
from self1e.data.semantic import Ade20k, CocoStuff, PacoLvis, PascalPart, part_names
from self1e.errors import DatasetError

WIDTH, HEIGHT = 10, 8
SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]
SHIFTED = [3, 3, 7, 3, 7, 7, 3, 7]


def put_picture(path, size_wh=(WIDTH, HEIGHT)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size_wh, "red").save(path)


def put_labels(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(labels, np.uint8)).save(path)


def put_json(path, found):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found), "utf-8")


@pytest.fixture
def labels():
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:2], labels[2:5, :4] = 1, 5
    return labels


def test_ade20k_reads_every_class_but_none(tmp_path, labels):
    put_picture(tmp_path / "ade20k/images/training/b.jpg")
    put_picture(tmp_path / "ade20k/images/training/a.jpg")
    put_labels(tmp_path / "ade20k/annotations/training/a.png", labels)
    samples = Ade20k(tmp_path)
    assert len(samples) == 2
    wall, tree = samples[0].targets
    assert (wall.text, tree.text, samples[0].source) == ("wall", "tree", "ade20k/training/a")
    assert np.array_equal(wall.mask, labels == 1)
    assert np.array_equal(tree.mask, labels == 5)
    assert samples[0].extra["absent"] == ()  # most pixels have no class: they may be anything
    put_labels(tmp_path / "ade20k/annotations/training/a.png", np.where(labels == 5, 5, 1))
    absent = set(samples[0].extra["absent"])
    assert "airplane" in absent < set(ADE20K) - {"wall", "tree", "palm", "plant"}
    with pytest.raises(DatasetError, match=r"ade20k/training/b: no class map .*b\.png"):
        samples[1]


def test_coco_stuff_leaves_out_classes_with_a_hyphen(tmp_path, labels):
    labels[labels == 0] = 255
    labels[labels == 5] = COCO_STUFF.index("wall-brick")
    labels[7] = 0
    put_labels(tmp_path / "cocostuff/train2017/000000000009.png", labels)
    put_picture(tmp_path / "coco/train2017/000000000009.jpg")
    sample = CocoStuff(tmp_path)[0]
    assert [target.text for target in sample.targets] == ["person", "bicycle"]
    assert np.array_equal(sample.targets[0].mask, np.arange(HEIGHT)[:, None].repeat(WIDTH, 1) == 7)
    assert "wall-brick" not in sample.extra["absent"]


def test_class_maps_that_cannot_be_right_are_refused(tmp_path, labels):
    put_picture(tmp_path / "ade20k/images/training/a.jpg")
    where = tmp_path / "ade20k/annotations/training/a.png"
    put_labels(where, labels + 150)
    with pytest.raises(DatasetError, match=r"a\.png holds the numbers \[151, 155\], expected 1 to 150"):
        Ade20k(tmp_path)[0]
    put_labels(where, labels[:, :-1])
    with pytest.raises(DatasetError, match="the class map is 9x8 but the picture 10x8"):
        Ade20k(tmp_path)[0]
    put_labels(where, np.stack([labels] * 3, axis=-1))
    with pytest.raises(DatasetError, match="has mode RGB, expected one class number per pixel"):
        Ade20k(tmp_path)[0]


@pytest.mark.parametrize("reader", [Ade20k, CocoStuff, PacoLvis, PascalPart, Referring, ReasonSeg])
def test_an_empty_folder_says_what_is_expected(tmp_path, reader):
    with pytest.raises(DatasetError, match=r"No (\*\.jpg|\*\.png|file) .*; expected .*"):
        reader(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("trash_can", ("trash_can",)),
        ("mouse_(computer_equipment)", ("mouse",)),
        ("mouse_(computer_equipment):body_(x)", ("mouse body", "the body of the mouse")),
        ("dog:left ear", ("dog left ear", "the left ear of the dog")),
    ],
)
def test_parts_have_two_names(name, words):
    assert part_names(name) == words


def parts_file(file_name):
    return {
        "images": [
            {"id": 8, "file_name": "none.jpg", "width": 3, "height": 3},
            {"id": 7, "file_name": file_name, "width": WIDTH, "height": HEIGHT},
        ],
        "categories": [{"id": 5, "name": "dog:left ear"}, {"id": 6, "name": "trash_can"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 5, "segmentation": [SQUARE]},
            {"id": 2, "image_id": 7, "category_id": 5, "segmentation": [SQUARE, SHIFTED]},
            {"id": 3, "image_id": 7, "category_id": 6, "segmentation": [SHIFTED]},
        ],
    }


def test_parts_are_one_target_per_instance(tmp_path):
    put_json(tmp_path / "vlpart/pascal_part/train.json", parts_file("2008_000001.jpg"))
    put_picture(tmp_path / "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages/2008_000001.jpg")
    put_json(tmp_path / "vlpart/paco/annotations/paco_lvis_v1_train.json", parts_file("train2017/000000000009.jpg"))
    put_picture(tmp_path / "coco/train2014/COCO_train2014_000000000009.jpg")
    for samples in (PascalPart(tmp_path), PacoLvis(tmp_path)):
        assert len(samples) == 1  # a picture without annotations is none
        found = [(target.text, target.aliases, int(target.mask.sum())) for target in samples[0].targets]
        ear = ("dog left ear", ("the left ear of the dog",))
        assert found == [(*ear, 16), (*ear, 28), ("trash_can", (), 16)]


def test_a_picture_of_another_size_than_its_annotations_is_refused(tmp_path):
    put_json(tmp_path / "vlpart/pascal_part/train.json", parts_file("a.jpg"))
    put_picture(tmp_path / "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages/a.jpg", (5, 4))
    with pytest.raises(DatasetError, match=r"pascal_part/7: .*a\.jpg is 5x4 but its annotations say 10x8"):
        PascalPart(tmp_path)[0]


def test_a_parts_file_that_is_changed_is_read_again(tmp_path):
    path = tmp_path / "vlpart/pascal_part/train.json"
    found = parts_file("a.jpg")
    put_json(path, found)
    assert len(PascalPart(tmp_path)) == 1
    found["annotations"].append({**found["annotations"][0], "image_id": 8})
    put_json(path, found)
    assert len(PascalPart(tmp_path)) == 2
    del found["categories"][0]
    put_json(path, found)
    with pytest.raises(DatasetError, match=r"train\.json .* uses the unknown categories \[5\]"):
        PascalPart(tmp_path)


def reference(number, annotation, image, split, *sentences):
    texts = [{"sent": text, "raw": text.upper()} for text in sentences]
    return {"ref_id": number, "ann_id": annotation, "image_id": image, "split": split, "sentences": texts}


@pytest.fixture
def refer(tmp_path):
    """Three pictures: 1 in train2014, 2 in train2017, 3 nowhere."""
    references = [
        reference(0, 11, 2, "train", " The Left Dog ", "dog"),
        reference(1, 12, 1, "train", "cup"),
        reference(2, 12, 2, "train", "Right one"),
        reference(3, 13, 3, "testAB", "c"),
    ]
    images = [
        {"id": number, "file_name": f"COCO_train2014_{number:012d}.jpg", "width": WIDTH, "height": HEIGHT}
        for number in (1, 2, 3)
    ]
    annotations = [
        {"id": 11, "image_id": 2, "segmentation": [SQUARE, SHIFTED]},
        {"id": 12, "image_id": 1, "segmentation": [SQUARE]},
        {"id": 13, "image_id": 3, "segmentation": []},
        {"id": 14, "image_id": 3, "segmentation": [SQUARE]},
    ]
    folder = tmp_path / "refer_seg"
    for name, split_by in (("refcoco", "unc"), ("refcocog", "umd"), ("refcocog", "google"), ("refclef", "unc")):
        put_json(folder / name / "instances.json", {"images": images, "annotations": annotations})
        (folder / name / f"refs({split_by}).p").write_bytes(pickle.dumps(references, 2))
    put_picture(folder / "images/mscoco/images/train2014/COCO_train2014_000000000001.jpg")
    put_picture(tmp_path / "coco/train2017/000000000002.jpg")
    general = [
        reference(0, [11, 14], 1, "val", "both"),
        reference(1, [-1], 1, "val", "a horse"),
        reference(2, [14], 1, "val", "one"),
    ]
    put_json(folder / "grefcoco/instances.json", {"images": images, "annotations": annotations})
    put_json(folder / "grefcoco/grefs(unc).json", general)
    return tmp_path


def test_a_referring_sample_is_a_picture_with_all_its_sentences(refer):
    samples = Referring(refer, "refcoco", "train")
    assert [sample.source for sample in samples] == ["refcoco(unc)/train/1", "refcoco(unc)/train/2"]
    found = [(target.text, target.tag, int(target.mask.sum())) for target in samples[1].targets]
    assert found == [("the left dog", "one", 28), ("dog", "one", 28), ("right one", "one", 16)]
    assert all(target.mask.dtype == bool for target in samples[1].targets)


def test_the_published_sum_of_polygons_is_there_on_request(refer):
    first, _, last = Referring(refer, "refcoco", "train", bug_compat=True)[1].targets
    assert np.unique(first.mask, return_counts=True)[1].tolist() == [52, 24, 4]
    assert last.mask.max() == 1
    general = [target.mask for target in Referring(refer, "grefcoco", "val", bug_compat=True)[0].targets]
    assert general[0].dtype == bool  # there the published code unites


def test_the_official_evaluation_of_grefcoco_leaves_crowds_out(refer):
    path = refer / "refer_seg/grefcoco/instances.json"
    instances = json.loads(path.read_text("utf-8"))
    for annotation in instances["annotations"]:
        annotation["iscrowd"] = int(annotation["id"] == 14)
    put_json(path, instances)
    taught = [int(target.mask.sum()) for target in Referring(refer, "grefcoco", "val")[0].targets]
    asked = Referring(refer, "grefcoco", "val", crowds=False)[0].targets
    both, none, one = asked
    assert [int(target.mask.sum()) for target in asked] == [28, 0, 0]  # the crowd lies in the other thing
    assert taught == [28, 0, 16]
    assert (both.tag, none.tag, one.tag) == ("several", "none", "one")  # a crowd alone is a target all the same


def test_grefcoco_has_several_targets_or_none(refer):
    both, none, one = Referring(refer, "grefcoco", "val")[0].targets
    assert [(t.text, t.tag, int(t.mask.sum())) for t in (both, none, one)] == [
        ("both", "several", 28),
        ("a horse", "none", 0),
        ("one", "one", 16),
    ]


def test_grefcoco_is_read_from_a_pickle_where_there_is_no_json(refer):
    path = refer / "refer_seg/grefcoco/grefs(unc).json"
    path.with_suffix(".p").write_bytes(pickle.dumps(json.loads(path.read_text()), 2))
    path.unlink()
    assert [target.tag for target in Referring(refer, "grefcoco", "val")[0].targets] == ["several", "none", "one"]


@pytest.mark.parametrize(("split", "length"), [("train", 2), ("testA", 1), ("testB", 1), ("test", 1)])
def test_test_splits_go_by_their_letter(refer, split, length):
    assert len(Referring(refer, "refcoco", split)) == length


def test_refcocog_is_divided_twice_and_missing_splits_are_named(refer):
    assert Referring(refer, "refcocog")[0].source == "refcocog(umd)/train/1"
    assert Referring(refer, "refcocog", split_by="google")[0].source == "refcocog(google)/train/1"
    with pytest.raises(DatasetError, match=r"refs\(umd\)\.p has no split 'val'; it has testAB, train"):
        Referring(refer, "refcocog", "val")
    with pytest.raises(DatasetError, match=r"Unknown data set 'refcoc'\. Did you mean 'refcoco'\?"):
        Referring(refer, "refcoc")


def test_refclef_has_pictures_of_its_own(refer):
    put_picture(refer / "refer_seg/images/saiapr_tc-12/COCO_train2014_000000000002.jpg")
    samples = Referring(refer, "refclef")
    assert len(samples[1].targets) == 3
    with pytest.raises(DatasetError, match=r"refclef\(unc\)/train/1: no picture .*saiapr_tc-12"):
        samples[0]


def test_a_missing_coco_picture_is_named_under_all_its_names(refer):
    wanted = "refcoco(unc)/testA/3: no picture COCO_train2014_000000000003.jpg or 000000000003.jpg or COCO_val2014"
    with pytest.raises(DatasetError) as error:
        Referring(refer, "refcoco", "testA")[0]
    assert str(error.value).startswith(wanted)
    assert "coco/train2017" in str(error.value)


def test_references_and_annotations_of_two_downloads_are_refused(refer):
    path = refer / "refer_seg/refcoco/refs(unc).p"
    path.write_bytes(pickle.dumps([reference(0, 99, 5, "train", "x")], 2))
    with pytest.raises(
        DatasetError, match=r"refs\(unc\)\.p refers to picture 5, annotation 99, which .*instances\.json lacks"
    ):
        Referring(refer, "refcoco")
    path.write_bytes(pickle.dumps([{"ref_id": 0}], 2))
    with pytest.raises(DatasetError, match=r"malformed at KeyError\('ann_id'\).*a list of records with ann_id"):
        Referring(refer, "refcoco")


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        ("000000000009.jpg", "coco/train2014/COCO_train2014_000000000009.jpg"),
        ("COCO_train2014_000000000009.jpg", "coco/train2017/000000000009.jpg"),
        ("train2017/000000000009.jpg", "coco/val2014/COCO_val2014_000000000009.jpg"),
        ("COCO_train2014_000000000009_16.jpg", "refer_seg/images/mscoco/images/train2014/000000000009.jpg"),
        ("000000000009.jpg", "../data/coco/train2014/COCO_train2014_000000000009.jpg"),
    ],
)
def test_coco_pictures_are_found_in_either_edition(tmp_path, asked, stored):
    root = tmp_path / "dataset"
    root.mkdir()
    put_picture(root / stored)
    assert CocoPictures(root).find(asked, "x").resolve() == (root / stored).resolve()


@pytest.fixture
def reasonseg(tmp_path):
    folder = tmp_path / "reason_seg/ReasonSeg"
    large = [[0, 0], [9, 0], [9, 7], [0, 7]]
    small = [[2, 2], [5, 2], [5, 5], [2, 5]]
    shapes = [
        {"label": "target", "points": small},
        {"label": "flag", "points": [[7, 1], [8, 1], [8, 2]]},
        {"label": "Ignored", "points": large},
    ]
    for split in ("train", "val"):
        put_picture(folder / split / "a.jpg")
        note = {"text": [" What holds Water? ", "second"], "is_sentence": True, "shapes": shapes}
        put_json(folder / split / "a.json", note)
    put_picture(folder / "train/b.jpg")
    text = json.dumps({"text": ["The café"], "is_sentence": False, "shapes": []}, ensure_ascii=False)
    (folder / "train/b.json").write_bytes(text.encode("cp1252"))
    record = {"image": "a.jpg", "json": "a.json", "query": "What could hold water?", "outputs": " The cup. "}
    put_json(folder / "explanatory/train.json", [record])
    return tmp_path


def test_reasonseg_paints_the_largest_first(reasonseg):
    first, second = ReasonSeg(reasonseg)[0].targets
    assert (first.text, second.text, first.kind) == ("What holds Water?", "second", "sentence")
    assert first.mask.sum() == 16  # it would lie under the ignored region otherwise
    assert first.ignore is not None
    assert first.ignore.sum() == WIDTH * HEIGHT - 16
    assert second.mask is first.mask


def test_reasonseg_reads_cp1252_and_keeps_capitals(reasonseg):
    (target,) = ReasonSeg(reasonseg)[1].targets
    assert (target.text, target.kind, bool(target.mask.any())) == ("The café", "phrase", False)


def test_reasonseg_asks_the_first_text_only_in_validation(reasonseg):
    assert [target.text for target in ReasonSeg(reasonseg, "val")[0].targets] == ["What holds Water?"]
    assert len(ReasonSeg(reasonseg, "val", every_text=True)[0].targets) == 2


def test_reasonseg_explains(reasonseg):
    (sample,) = ReasonSeg(reasonseg, "explanatory")
    (target,), (question,) = sample.targets, sample.questions
    assert target.text == question.text == "What could hold water?"
    assert (target.kind, target.mask.sum(), question.answer, question.tag) == (
        "sentence",
        16,
        "The cup.",
        "explanation",
    )


def test_reasonseg_names_a_malformed_file(reasonseg):
    path = reasonseg / "reason_seg/ReasonSeg/train/a.json"
    path.write_text('{"text": ["x"]}')
    with pytest.raises(
        DatasetError, match=r"reasonseg/train/a: .*a\.json is malformed at KeyError\('shapes'\); expected"
    ):
        ReasonSeg(reasonseg)[0]
    path.write_text("{")
    with pytest.raises(DatasetError, match=r"a\.json is no JSON"):
        ReasonSeg(reasonseg)[0]
    (reasonseg / "reason_seg/ReasonSeg/explanatory/train.json").write_text('[{"image": "a.jpg"}]')
    with pytest.raises(DatasetError, match="records with image, query and outputs"):
        ReasonSeg(reasonseg, "explanatory")


def test_a_choice_of_samples_is_drawn_once_and_kept_in_order():
    samples = range(100)
    one, other = Chosen(samples, 10, seed=1), Chosen(samples, 10, seed=1)  # type: ignore[arg-type]
    assert list(one) == list(other) == sorted(set(one))
    assert list(one) != list(Chosen(samples, 10, seed=2))  # type: ignore[arg-type]
    assert list(Chosen(samples, 200)) == list(samples)  # type: ignore[arg-type]
