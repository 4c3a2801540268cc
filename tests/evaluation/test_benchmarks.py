"""Benchmarks ask what the published protocols ask; class maps are read as their data have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from self1e.data.class_names import CAMVID
from self1e.data.reason import ReasonSeg
from self1e.data.sample import Sample, Target
from self1e.errors import DatasetError, SettingError
from self1e.evaluation.benchmarks import BENCHMARKS, Options, find_benchmark
from self1e.evaluation.benchmarks.classes import measure_classes
from self1e.evaluation.benchmarks.masks import measure_targets, target_row
from self1e.evaluation.metrics.semantic import label_map
from self1e.evaluation.protocols import PROTOCOLS
from self1e.structures import Segmentation

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def fixture_root(find_shared: Callable[[str, str], Path]) -> Path:
    return find_shared("SELF1E_LAYOUT_FIXTURE", "data/5_layout_fixture_derived")


def test_every_benchmark_names_protocols_that_exist() -> None:
    for name in BENCHMARKS:
        benchmark = find_benchmark(name)
        assert benchmark.name == name
        assert {*benchmark.protocols, *benchmark.explicit_protocols} <= set(PROTOCOLS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("refcoco/val", 10_834), ("refcoco+/testA", 5_726), ("refcocog/test", 9_602), ("reasonseg/test", 779)),
        *(("ade20k-150/val", 2_000), ("pc-59/val", 5_105), ("pc-459/val", 5_105), ("pas-20/val", 1_449)),
        *(("vqav2/val", 214_354), ("okvqa/val", 5_046), ("textvqa/val", 5_000), ("vizwiz/val", 4_319)),
        *(("gqa/testdev", 12_578), ("mme", 2_374)),
    ],
)
def test_the_published_number_of_samples_is_expected(name: str, expected: int) -> None:
    assert find_benchmark(name).expected == expected


def test_every_sentence_of_the_fixture_is_one_sample(tiny_model: Any, fixture_root: Path) -> None:
    benchmark = find_benchmark("refcoco/val")
    opened = benchmark.open(fixture_root)
    assert not opened.problems
    rows = [row for k in range(len(opened.units)) for row in benchmark.measure(tiny_model, opened.units[k], Options())]
    assert len({row["id"] for row in rows}) == len(rows) == sum(len(sample.targets) for sample in opened.units)
    failed = [row for k in range(len(opened.units)) for row in benchmark.failed(opened, k)]
    assert [row["id"] for row in failed] == [row["id"] for row in rows]  # a crash is the same samples, wrong
    assert [row["gt_area"] for row in failed] == [row["gt_area"] for row in rows]
    assert all(row["failed"] and not row["I"] for row in failed)


def test_absent_targets_of_grefcoco_are_known(tiny_model: Any, fixture_root: Path) -> None:
    benchmark = find_benchmark("grefcoco/val")
    opened = benchmark.open(fixture_root)
    rows = [row for k in range(len(opened.units)) for row in benchmark.measure(tiny_model, opened.units[k], Options())]
    assert any(row["gt_nt"] for row in rows)
    assert all(row["gt_nt"] == (row["subsets"] == ["no target"]) for row in rows)
    assert all(row["pred_nt"] is None for row in rows)  # [SEG] was given, and nothing was calibrated


def test_reasoning_asks_the_first_text_and_leaves_ignored_pixels_out(tiny_model: Any, fixture_root: Path) -> None:
    benchmark = find_benchmark("reasonseg/val")
    opened = benchmark.open(fixture_root)
    rows = [row for k in range(len(opened.units)) for row in benchmark.measure(tiny_model, opened.units[k], Options())]
    assert len(rows) == len(opened.units) == 2
    assert {tuple(row["subsets"]) for row in rows} <= {("short",), ("long",)}
    for sample, row in zip(opened.units, rows, strict=True):
        [target] = sample.targets
        assert row["gt_area"] == np.count_nonzero(target.mask & ~target.ignore)


@pytest.mark.parametrize("split", ["val", "train"])
def test_photographs_of_reasonseg_are_turned_upright_with_their_outlines(tmp_path: Path, split: str) -> None:
    folder = tmp_path / "dataset" / "reason_seg" / "ReasonSeg" / split
    folder.mkdir(parents=True)
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :10] = 255  # stored lying: its left is the top of what one sees
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "a.jpg", exif=exif, quality=95)
    shape = {"label": "target", "points": [[2, 2], [17, 2], [17, 7], [2, 7]]}
    note = {"text": ["the bright part"], "is_sentence": False, "shapes": [shape]}
    (folder / "a.json").write_text(json.dumps(note), "utf-8")
    units: Any = ReasonSeg(tmp_path / "dataset", split)
    [sample] = units
    assert sample.image.size == units.peek(0, with_size=True).size_wh == (20, 40)
    [target] = sample.targets
    assert target.mask.shape == (40, 20)
    assert target.mask.sum() == 16 * 6
    assert np.asarray(sample.image)[target.mask].mean() > 250
    assert np.asarray(sample.image)[20:].mean() < 5
    assert 0x0112 not in sample.image.getexif()


def test_a_missing_picture_is_told_before_anything_runs(fixture_root: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(fixture_root / "dataset" / "refer_seg" / "refcoco", tmp_path / "dataset" / "refer_seg" / "refcoco")
    [problem] = find_benchmark("refcoco/val").open(tmp_path).problems
    assert "missing: COCO_train2014_" in problem


def _result(mask: np.ndarray, text: str = "[SEG].") -> Segmentation:
    return Segmentation.from_masks([mask], [0.7], ["x"], text=[text])


def test_rejections_are_read_off_the_answer_and_the_score() -> None:
    truth = np.zeros((6, 8), bool)
    truth[2:4] = True
    target = Target(text="x", mask=truth)
    generated = Options(answer="generated")
    assert target_row("a", 0, target, _result(truth))["pred_nt"] is None
    assert target_row("a", 0, target, _result(truth, "Nothing."), options=generated)["pred_nt"] is True
    assert target_row("a", 0, target, _result(truth), options=generated)["pred_nt"] is False
    assert target_row("a", 0, target, _result(truth), options=generated, no_target_threshold=0.8)["pred_nt"] is True
    assert target_row("a", 0, target, _result(truth), no_target_threshold=0.6)["pred_nt"] is False


def test_a_phrase_that_means_crowds_alone_still_means_something(
    tiny_model: Any, fixture_root: Path, tmp_path: Path
) -> None:
    """METRICS 2.1: crowds are left out of the truth, and the sample still counts as one with a target."""
    import json
    import shutil

    root = tmp_path / "dataset" / "refer_seg"
    shutil.copytree(fixture_root / "dataset" / "refer_seg" / "grefcoco", root / "grefcoco")
    (root / "images").symlink_to(fixture_root / "dataset" / "refer_seg" / "images")
    path = root / "grefcoco" / "instances.json"
    content = json.loads(path.read_text("utf-8"))
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    path.write_text(json.dumps(content), "utf-8")
    benchmark = find_benchmark("grefcoco/val")
    opened = benchmark.open(tmp_path)
    for k in range(len(opened.units)):
        for rows in (benchmark.measure(tiny_model, opened.units[k], Options()), benchmark.failed(opened, k)):
            assert [row["gt_nt"] for row in rows] == [row["subsets"] == ["no target"] for row in rows]
            assert all(row["gt_area"] == 0 for row in rows)


def test_words_of_your_own_do_not_say_that_nothing_is_there() -> None:
    target = Target(text="x", mask=np.ones((6, 8), bool), tag="none")  # of a list of colours, say
    assert target_row("a", 0, target, _result(target.mask))["gt_nt"] is False


def test_a_score_that_is_no_number_fails_its_own_sample_alone(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    mask = np.ones((50, 60), bool)

    def answer(self: Any, picture: Any, queries: Any, **options: Any) -> Any:
        right = SimpleNamespace(text=("[SEG].",), scores=np.array([0.7]), mask=lambda k: mask)
        overflown = SimpleNamespace(text=("[SEG].",), scores=np.array([np.nan]), mask=lambda k: mask)
        turned = SimpleNamespace(text=("[SEG].",), scores=np.array([0.7]), mask=lambda k: mask.T)
        return [{"right": right, "overflown": overflown, "turned": turned}[query] for query in queries]

    monkeypatch.setattr(type(tiny_model), "segment", answer)
    targets = tuple(Target(text=text, mask=mask) for text in ("overflown", "right", "turned"))
    rows = measure_targets(tiny_model, Sample(image=Image.new("RGB", (60, 50)), targets=targets), Options())
    assert [row["failed"] for row in rows] == [True, False, True]
    assert "score is nan" in rows[0]["error"]
    assert "prediction is (60, 50)" in rows[2]["error"]
    assert [row["U"] for row in rows] == [3000] * 3


def test_a_prediction_of_another_size_is_an_error() -> None:
    target = Target(text="x", mask=np.ones((6, 8), bool))
    with pytest.raises(SettingError, match=r"prediction is \(8, 6\) but the truth \(6, 8\)"):
        target_row("a", 0, target, _result(np.ones((8, 6), bool)))


def test_a_picture_is_encoded_once_for_all_of_its_queries(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[Any] = []
    real = type(tiny_model).encode
    monkeypatch.setattr(type(tiny_model), "encode", lambda self, *a, **k: encoded.append(a) or real(self, *a, **k))
    mask = np.ones((50, 60), bool)
    sample = Sample(image=Image.new("RGB", (60, 50)), targets=tuple(Target(text=t, mask=mask) for t in "abc"))
    assert len(measure_targets(tiny_model, sample, Options())) == 3
    assert len(encoded) == 1


# ---------------------------------------------------------------------- class maps


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    folder = tmp_path / "camvid"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    labels = np.full((30, 40), 11, np.uint8)
    labels[:10], labels[10:20, :20] = 0, 3
    Image.fromarray(labels).save(folder / "masks" / "a.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)).save(folder / "images" / "a.jpg")
    (folder / "val.txt").write_text("a\n", "utf-8")
    names = [*CAMVID, "unlabelled"]
    (folder / "classes.txt").write_text("".join(f"{k} {name}\n" for k, name in enumerate(names)), "utf-8")
    return tmp_path


def test_the_highest_logit_of_all_classes_wins(tiny_model: Any, camvid: Path) -> None:
    benchmark = find_benchmark("camvid/val")
    [unit] = benchmark.open(camvid).units
    [row] = benchmark.measure(tiny_model, unit, Options(exact="plain"))
    logits = [
        tiny_model.segment(unit.image, name, kind="phrase", return_logits=True, exact="plain").mask_logits[0]
        for name in CAMVID
    ]  # one by one, each on an encoding of its own
    expected = label_map(logits, unit.image.size, len(CAMVID))
    real = unit.labels != 11
    pairs, counts = np.unique(np.stack([unit.labels[real], expected[real]]), axis=1, return_counts=True)
    found = {(truth, given): pixels for truth, given, pixels in row["confusion"]}
    assert sum(found.values()) == counts.sum() == 600  # what is unlabelled counts nowhere
    wanted = {(int(a), int(b)): int(n) for (a, b), n in zip(pairs.T, counts, strict=True)}
    assert sum(abs(found.get(key, 0) - wanted.get(key, 0)) for key in {*found, *wanted}) <= 2  # ties, by rounding


def test_many_classes_are_asked_in_parts_with_the_same_labels(
    tiny_model: Any, camvid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from self1e.evaluation.benchmarks import classes
    from self1e.inference import semantic

    [unit] = find_benchmark("camvid/val").open(camvid).units
    whole = measure_classes(tiny_model, unit, Options(exact="plain"), classes.CAMVID_SET)
    monkeypatch.setattr(semantic, "CLASSES_AT_ONCE", 4)
    assert measure_classes(tiny_model, unit, Options(exact="plain"), classes.CAMVID_SET) == whole


def test_a_class_map_without_a_picture_is_missed_as_a_whole(camvid: Path) -> None:
    (camvid / "camvid" / "images" / "a.jpg").write_bytes(b"no picture")
    benchmark = find_benchmark("camvid/val")
    [row] = benchmark.failed(benchmark.open(camvid), 0)
    assert row["failed"]
    assert sorted(row["confusion"]) == [[0, 11, 400], [3, 11, 200]]


def test_a_wrong_class_list_is_refused(camvid: Path) -> None:
    (camvid / "camvid" / "classes.txt").write_text("0 building\n1 sky\n", "utf-8")
    with pytest.raises(DatasetError, match="lists building, sky; expected sky, building"):
        find_benchmark("camvid/val").open(camvid)


def test_labels_beyond_the_classes_are_refused(camvid: Path) -> None:
    Image.fromarray(np.full((30, 40), 12, np.uint8)).save(camvid / "camvid" / "masks" / "a.png")
    units: Any = find_benchmark("camvid/val").open(camvid).units
    with pytest.raises(DatasetError, match=r"holds the labels \[12\], expected 0 to 10 or 11"):
        units[0]


def test_pascal_context_459_is_read_in_sixteen_bits(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit" / "VOC2010"
    (root / "JPEGImages").mkdir(parents=True)
    (root / "annotations_detectron2" / "pc459_val").mkdir(parents=True)
    labels = np.array([[0, 255], [458, 65535]], np.uint16)
    Image.fromarray(labels).save(root / "annotations_detectron2" / "pc459_val" / "x.tif")
    Image.new("RGB", (2, 2)).save(root / "JPEGImages" / "x.jpg")
    [unit] = find_benchmark("pc-459/val").open(tmp_path).units
    assert unit.labels.tolist() == labels.tolist()


def test_ade20k_of_the_conformance_data_is_read(conformance: Path, tmp_path: Path) -> None:
    import shutil

    for kind in ("images", "annotations"):
        shutil.copytree(conformance / "ade20k" / kind, tmp_path / "ade20k" / kind / "validation")
    units: Any = find_benchmark("ade20k-150/val").open(tmp_path).units
    assert len(units) == 2
    stored = np.asarray(Image.open(tmp_path / "ade20k" / "annotations" / "validation" / f"{units.names[0]}.png"))
    labels = units[0].labels
    assert np.array_equal(labels[stored > 0] + 1, stored[stored > 0])
    assert (labels[stored == 0] == 255).all()
