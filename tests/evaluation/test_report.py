"""The report is one file that opens anywhere, shows what the rows say, and stays as small as it promises."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from self1e.errors import DatasetError, SettingError
from self1e.evaluation import runner
from self1e.evaluation.protocols import Run
from self1e.evaluation.report import panels, write_report
from self1e.evaluation.report.cases import Case, histogram, pick
from self1e.evaluation.report.page import _answer
from self1e.evaluation.report.truths import Found, Truths
from self1e.evaluation.saved_masks import decode_text_rle, encode_map, text_rle
from self1e.evaluation.scores import picture_iou, sample_scores
from self1e.evaluation.tables import missing_part, read_results

pytestmark = pytest.mark.usefixtures("one_thread")
VOID = {"meta", "img", "input", "br", "link"}


class Reader(HTMLParser):
    """Checks that tags close in order, and keeps what a test asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of_class(self, name: str) -> list[dict[str, str]]:
        return [attributes for _, attributes in self.tags if name in attributes.get("class", "").split()]


def measure(model: Any, out: Path, names: tuple[str, ...], limit: int = 3, *, save_masks: bool = True) -> Path:
    for job in runner.plan(model, names, [], out, limit=limit, save_masks=save_masks):
        runner.evaluate(job, model)
    return out


@pytest.fixture(scope="module")
def out(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return measure(tiny_model, tmp_path_factory.mktemp("report"), ("scenes/test", "scenes-questions/test"))


@pytest.fixture(scope="module")
def page(out: Path) -> Reader:
    write_report(out)
    return Reader((out / "report.html").read_text("utf-8"))


def test_the_page_needs_nothing_but_itself(page, out):
    text = (out / "report.html").read_text("utf-8")
    assert not re.search(r"https?://|@import|url\((?!data:)", text)
    assert all(a["src"].startswith("data:") for tag, a in page.tags if tag == "img")
    assert not [a for tag, a in page.tags if tag in ("link", "iframe") or (tag == "script" and "src" in a)]


def test_every_sample_shown_has_picture_truth_prediction_and_error(page, out):
    rows = {row["id"]: row for one in read_results(out) for row in one.rows}
    cases = page.of_class("case")
    assert len(cases) == len(rows)  # fewer than the report would show
    text = (out / "report.html").read_text("utf-8")
    captions = [
        len(re.findall(f"<figcaption>{name}[:<]", text)) for name in ("picture", "truth", "prediction", "error")
    ]
    assert captions == [sum("mask" in row for row in rows.values())] * 4
    masks = [a for a in cases if json.loads(a["data-run"]) == ["scenes/test, tf"]]
    assert {size for a in masks for size in json.loads(a["data-size"])} <= {"absent", "small", "medium", "large"}
    assert masks
    assert all(json.loads(a["data-length"]) for a in masks)
    assert any("single target" in json.loads(a["data-tag"]) for a in masks)


def test_filters_and_script_name_the_same_things(page, out):
    text = (out / "report.html").read_text("utf-8")
    names = {a["name"] for tag, a in page.tags if tag == "select"}
    assert names == {"run", "pick", "size", "length", "tag"}
    for case in page.of_class("case"):
        assert all(f"data-{name}" in case for name in (*names, "words"))
    ids = {a["id"] for _, a in page.tags if "id" in a}
    assert set(re.findall(r'querySelector\("#(\w+)"\)', text)) <= ids
    assert {a["href"][1:] for tag, a in page.tags if tag == "a"} <= ids


def test_everything_pressed_is_a_control_and_says_what_it_is(page):
    assert all(a.get("aria-label") for tag, a in page.tags if tag == "button" and "id" not in a and "type" in a)
    assert all("alt" in a for tag, a in page.tags if tag == "img")
    assert {"prefers-color-scheme: dark", "max-width: 640px"} <= set(
        re.findall(r"\(([^()]*)\) \{", "".join(page.words))
    )


def test_an_enlarged_sample_keeps_its_picture(out):
    """The picture is a rule of the style sheet: the class that names it must come along."""
    text = (out / "report.html").read_text("utf-8")
    assert re.search(r"\.p0 \.pic\{aspect-ratio:\d+/\d+;background-image:url\(data:image/jpeg", text)
    assert 'large.className = one.className.replace("case", "")' in text


def test_words_of_a_query_cannot_become_markup(out, tmp_path):
    folder = tmp_path / "evil"
    for path in out.rglob("rows-*.jsonl"):
        copy = folder / path.relative_to(out)
        copy.parent.mkdir(parents=True)
        header, *lines = path.read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        for row in rows:
            row["unit"] = None  # so that the words come from the row
            row["query"] = '</article><script>alert("1")</script>'
        copy.write_text("\n".join([header, *map(json.dumps, rows)]) + "\n", "utf-8")
    write_report(folder)
    page = Reader((folder / "report.html").read_text("utf-8"))
    assert sum(tag == "script" for tag, _ in page.tags) == 1


def test_the_same_rows_give_the_same_bytes(out, page):
    before = (out / "report.html").read_bytes(), (out / "report.md").read_bytes()
    write_report(out)
    assert ((out / "report.html").read_bytes(), (out / "report.md").read_bytes()) == before


def test_the_page_stays_below_its_size_and_says_what_it_left_out(out, page, tmp_path):
    full = len(page.of_class("case"))
    path, _ = write_report(out, most_bytes=240_000)
    text = path.read_text("utf-8")
    assert len(text) < 240_000
    assert "samples are left out" in text
    assert 0 < len(Reader(text).of_class("case")) < full
    write_report(out)


def test_rows_without_masks_say_so(tiny_model, tmp_path):
    folder = measure(tiny_model, tmp_path, ("scenes/test",), limit=1, save_masks=False)
    path, _ = write_report(folder)
    assert "measure with --report" in path.read_text("utf-8")


def test_without_the_data_there_are_tables_and_a_reason(tiny_model, tmp_path):
    folder = measure(tiny_model, tmp_path, ("scenes/test",), limit=1)
    for path in folder.rglob("rows-*.jsonl"):
        path.write_text(path.read_text("utf-8").replace('"annotations": "', '"annotations": "0'), "utf-8")
    text = write_report(folder)[0].read_text("utf-8")
    assert "give the folder of those data" in text
    assert "giou" in text


def test_markdown_has_tables_parts_and_the_worst(out, page):
    text = (out / "report.md").read_text("utf-8")
    for heading in ("## Every run", "## scenes/test, tf, by part", "## scenes/test, tf, worst samples", "## How this"):
        assert heading in text


def test_names_of_categories_may_hold_any_separator(out, tmp_path):
    odd = 'shirts, ties | "others"'
    source = next(path for path in out.rglob("rows-*.jsonl") if "questions" not in str(path))
    header, *lines = source.read_text("utf-8").splitlines()
    copy = tmp_path / "odd" / "rows-00000.jsonl"
    copy.parent.mkdir()
    rows = [json.loads(line) | {"subsets": [odd]} for line in lines]
    copy.write_text("\n".join([header, *map(json.dumps, rows)]) + "\n", "utf-8")
    write_report(tmp_path)
    page = Reader((tmp_path / "report.html").read_text("utf-8"))
    assert all(json.loads(case["data-tag"]) == [odd] for case in page.of_class("case"))
    assert {"value": odd} in [attributes for tag, attributes in page.tags if tag == "option"]
    tables = [line for line in (tmp_path / "report.md").read_text("utf-8").splitlines() if line.startswith("|")]
    told = [line for line in tables if "shirts" in line]
    assert len(told) >= 2  # of a protocol, and by part
    for line in told:
        above = next(head for head in reversed(tables[: tables.index(line)]) if head.startswith("|---"))
        assert len(re.findall(r"(?<!\\)\|", line)) == above.count("|")


def test_answers_for_a_server_are_neither_right_nor_wrong(tmp_path):
    run = Run(
        model="m", protocol="vqa.submission", dataset="vizwiz/test", annotations="a", prompt="p", answer="generated"
    )
    row = {"id": "0", "failed": False, "prediction": "two", "submitted": {"question_id": 7}}
    assert sample_scores(run, [row]) == {}
    image = Image.new("RGB", (20, 10))
    shown = _answer(row, Found(image=image, words="How many?"), Case(row=row, score=None))
    assert "two" in shown
    assert "right" not in shown
    assert "wrong" not in shown
    for score, told in ((0.0, "(wrong)"), (0.3, "(as 0.30 of the people said)"), (1.0, "(right)")):
        assert told in _answer(row, Found(image=image, words=""), Case(row=row, score=score))


def test_an_answer_is_read_for_its_score_as_the_protocol_reads_it():
    run = Run(model="m", protocol="mme", dataset="mme", annotations="a", prompt="p", answer="generated")
    said = {"True": 1.0, "是": 1.0, "I say yes": 0.0, "no": 0.0}
    rows = [
        {"id": f"color/{k}/{j}", "failed": False, "task": "color", "image": str(k), "prediction": text, "label": "yes"}
        for k, text in enumerate(said)
        for j in range(2)
    ]
    found = sample_scores(run, rows)
    assert [found[f"color/{k}/0"] for k in range(len(said))] == list(said.values())


def test_two_models_in_one_report_are_told_apart(out, tmp_path):
    source = next(path for path in out.rglob("rows-*.jsonl") if "questions" not in str(path))
    header, *lines = source.read_text("utf-8").splitlines()
    for name in ("one", "other"):
        copy = tmp_path / name / "rows-00000.jsonl"
        copy.parent.mkdir()
        copy.write_text("\n".join([json.dumps(json.loads(header) | {"model": name}), *lines]) + "\n", "utf-8")
    write_report(tmp_path)
    page = Reader((tmp_path / "report.html").read_text("utf-8"))
    named = {name for case in page.of_class("case") for name in json.loads(case["data-run"])}
    assert named == {"scenes/test, tf, one", "scenes/test, tf, other"}


def test_published_values_are_printed_as_published(out, tmp_path):
    source = next(path for path in out.rglob("rows-*.jsonl") if "questions" not in str(path))
    header, *lines = source.read_text("utf-8").splitlines()
    named = json.loads(header) | {"dataset": "refcocog/test", "protocol": "res.sentence"}
    (tmp_path / "rows-00000.jsonl").write_text("\n".join([json.dumps(named), *lines]) + "\n", "utf-8")
    words = Reader(write_report(tmp_path)[0].read_text("utf-8")).words
    row = words[words.index("SELF1E-SEG-2B (published)") :]
    assert row[8] == "81.0"  # not 81


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match="No rows under"):
        write_report(tmp_path)


def test_a_report_of_no_samples_is_refused(out):
    with pytest.raises(SettingError, match="at least 1"):
        write_report(out, each=0)


# ---------------------------------------------------------------------- parts


def test_failed_samples_come_first_and_random_ones_come_from_all():
    cases = [Case(row={"id": f"{k:03}", "failed": k == 50, "gt_area": k}, score=k / 100) for k in range(100)]
    chosen = pick(cases, 3)
    assert chosen[0].row["id"] == "050"
    assert "failed" in chosen[0].picks
    assert [case.row["id"] for case in chosen if "worst" in case.picks] == ["000", "001", "002"]
    assert {case.row["id"] for case in chosen if "best" in case.picks} == {"097", "098", "099"}
    assert sum("random" in case.picks for case in chosen) == 3
    assert pick(cases, 3, seed=0) == chosen


def test_a_histogram_counts_everything_once():
    cases = [
        Case(row={"id": str(k), "failed": False}, score=score) for k, score in enumerate((0, 0.05, 0.5, 1.0, None))
    ]
    assert histogram(cases) == [2, 0, 0, 0, 0, 1, 0, 0, 0, 1]


def test_layers_show_false_positives_and_negatives_in_their_colours():
    truth, prediction = np.zeros((2, 8, 8), bool)
    truth[:, :4], prediction[:4] = True, True
    found = Found(image=Image.new("RGB", (8, 8)), words="", truth=truth, prediction=prediction)
    names = [name for name, _ in panels.layers(found)]
    assert names == ["truth", "prediction", "error"]
    error = open_url(panels.layers(found)[2][1])
    corners = [error.getpixel(xy) for xy in ((0, 0), (7, 0), (0, 7), (7, 7))]
    assert [pixel[:3] for pixel in corners[:3]] == [panels.RIGHT, panels.EXTRA, panels.MISSED]
    assert corners[3][3] == 0


def open_url(url: str) -> Any:
    import base64
    import io

    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA")


def test_masks_and_maps_come_back_from_rows():
    labels = np.random.default_rng(0).integers(0, 3, (5, 7))
    back = np.full(labels.shape, 9)
    for number, rle in json.loads(json.dumps(encode_map(labels))):
        back[decode_text_rle(rle)] = number
    assert (back == labels).all()
    mask = labels == 1
    assert (decode_text_rle(text_rle(mask)) == mask).all()


def test_a_failed_class_map_scores_nothing_even_where_its_truth_is_unknown():
    named = {"model": "m", "annotations": "a", "prompt": "p", "answer": "teacher-forced"}
    run = Run(protocol="ovs.d2/pas-20", dataset="pas-20/val", **named)
    rows = [{"id": str(k), "failed": True, "confusion": entries} for k, entries in enumerate(([], [[0, 20, 9]]))]
    assert sample_scores(run, rows) == {"0": 0.0, "1": 0.0}
    assert "1 class maps cannot be read and count nowhere" in missing_part(run, rows)


def test_a_class_map_scores_the_mean_iou_of_its_classes():
    # Class 0: 6 right, 2 taken for class 1. Class 1: 4 right. IoU 6/8 and 4/6.
    row = {"id": "a", "failed": False, "confusion": [[0, 0, 6], [0, 1, 2], [1, 1, 4]]}
    assert picture_iou(row) == pytest.approx((6 / 8 + 4 / 6) / 2)


def test_scores_follow_the_protocol():
    run = Run(
        model="m",
        protocol="scenes.exact",
        dataset="d",
        annotations="a",
        prompt="p",
        answer="generated",
    )
    rows = [
        {"id": "0", "failed": False, "prediction": "Red.", "answer": "red"},
        {"id": "1", "failed": False, "prediction": "two", "answer": "red"},
    ]
    assert sample_scores(run, rows) == {"0": 1.0, "1": 0.0}


def test_a_class_map_is_shown_with_names(tmp_path, find_shared):
    camvid = find_shared("SELF1E_TRAIN_DATA", "data/2_train")
    from self1e.evaluation.benchmarks import find_benchmark

    opened = find_benchmark("camvid/val").open(camvid)
    truths = Truths(
        Run(
            model="m",
            protocol="ovs.d2/camvid",
            dataset="camvid/val",
            annotations=opened.annotations,
            prompt="p",
            answer="teacher-forced",
        ),
        [camvid],
    )
    labels = np.asarray(opened.units[0].labels)
    row = {"id": opened.units[0].source, "unit": 0, "map": encode_map(np.zeros_like(labels))}
    found = truths.find(row)
    assert found is not None
    assert found.prediction is not None
    assert (found.prediction == 0).all()
    legend = [name for name, _ in panels.class_legend(found)]
    assert legend[0] == "sky"
    assert "road" in legend
    assert len(panels.layers(found)) == 3
