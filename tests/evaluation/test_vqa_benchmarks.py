"""Benchmarks of questions: official layouts are read, asked as published, and judged by their metrics."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from self1e.data.vqa_benchmarks.open_answers import read_open
from self1e.data.vqa_benchmarks.options import CHINESE_PROMPT, ENGLISH_PROMPT, read_mmbench
from self1e.data.vqa_benchmarks.yes_no import read_mme, read_pope
from self1e.errors import DatasetError, SettingError
from self1e.evaluation.benchmarks import vqa
from self1e.evaluation.benchmarks.interface import Options
from self1e.evaluation.metrics.yes_no import COGNITION, PERCEPTION, POPE_FILES
from self1e.evaluation.protocols import PROTOCOLS
from self1e.evaluation.submissions import write_submission
from self1e.processing.prompts import SHORT_ANSWER_PROMPT

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = (*PERCEPTION, *COGNITION)
GENERATED = Options(answer="generated")


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def draw(path: Path, colour=(200, 30, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), colour).save(path)
    return path


def ten(answer, other="left"):
    return [{"answer": answer if k < 7 else other, "answer_confidence": "yes", "answer_id": k + 1} for k in range(10)]


def lines(records):
    return "".join(f"{json.dumps(record)}\n" for record in records)


def vqav2(root: Path) -> Path:
    """Two questions about one picture, one about another, as the VQA API ships them."""
    home = root / "data" / "vqav2"
    asked = [(42, 42000, "Where is he looking?"), (42, 42001, "How many cats?"), (7, 7000, "Is it day?")]
    questions = [{"image_id": image, "question_id": number, "question": text} for image, number, text in asked]
    kinds = {42000: ("down", "other"), 42001: ("2", "number"), 7000: ("yes", "yes/no")}
    annotations = [
        {"question_id": number, "answer_type": kind, "multiple_choice_answer": answer, "answers": ten(answer)}
        for number, (answer, kind) in kinds.items()
    ]
    write(home / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    write(home / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    for image in (42, 7):
        draw(root / "data" / "coco" / "val2014" / f"COCO_val2014_{image:012d}.jpg")
    return root


def rows_of(name, root, answers):
    """Judge given answers by a benchmark's metric; units as the runner sees them."""
    chosen = vqa.QUESTIONS[name]
    opened = vqa.VQA_BENCHMARKS[name].open(root)
    rows = [row for unit in opened.units for row in vqa._rows(chosen, unit, [answers[one.id] for one in unit])]
    return opened, rows


def result(name, rows, which=0):
    return PROTOCOLS[vqa.QUESTIONS[name].protocols[which]].metric().add_rows(rows).result()


# --------------------------------------------------------------------------- open answers


def test_vqav2_official_files(tmp_path):
    root = vqav2(tmp_path)
    opened, rows = rows_of("vqav2/val", root, {"42000": "Down.", "42001": "two", "7000": "no"})
    assert [len(unit) for unit in opened.units] == [2, 1]
    assert opened.problems == ()
    first = opened.units[0][0]
    assert first.prompt == "Where is he looking? Answer the question using a single word or phrase."
    assert first.image().size == (40, 30)
    found = result("vqav2/val", rows)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert (found["accuracy/other"], found["accuracy/number"], found["accuracy/yes/no"]) == (1, 1, 0)
    assert result("vqav2/val", rows, 1)["accuracy"] == pytest.approx(2 / 3)
    assert rows[0]["group"] == rows[1]["group"] != rows[2]["group"]


def test_the_lines_of_internvl_ask_the_same(tmp_path):
    root = vqav2(tmp_path)
    home = root / "data" / "vqav2"
    official = read_open(root, "vqav2/val")
    write(
        home / "vqav2_val.jsonl",
        lines(
            {
                "image": f"data/{one.picture_id}",
                "question": one.prompt.removesuffix(f" {SHORT_ANSWER_PROMPT}"),
                "question_id": int(one.id),
                "answer": "x",
            }
            for one in official
        ),
    )
    (home / "v2_OpenEnded_mscoco_val2014_questions.json").unlink()
    assert read_open(root, "vqav2/val") == official
    (home / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(DatasetError, match=r"has vqav2_val.jsonl but no v2_mscoco_val2014_annotations.json"):
        read_open(root, "vqav2/val")


def test_folders_are_found_beside_the_data_sets_too(tmp_path):
    vqav2(tmp_path)
    (tmp_path / "dataset").mkdir()
    assert read_open(tmp_path / "dataset", "vqav2/val") == read_open(tmp_path, "vqav2/val")


def test_okvqa_is_judged_by_answer(tmp_path):
    home = tmp_path / "data" / "okvqa"
    asked = {"image_id": 3, "question_id": 31, "question": "What race is it?"}
    answers = [{"answer": "race", "raw_answer": "racing"}] * 10
    write(home / "OpenEnded_mscoco_val2014_questions.json", {"questions": [asked]})
    write(home / "mscoco_val2014_annotations.json", {"annotations": [{"question_id": 31, "answers": answers}]})
    opened, rows = rows_of("okvqa/val", tmp_path, {"31": "race"})
    assert result("okvqa/val", rows)["accuracy"] == 1
    assert "COCO_val2014_000000000003.jpg" in opened.problems[0]


def test_textvqa_and_vizwiz(tmp_path):
    one = {"question_id": 5, "image_id": "0a", "question": "what brand?", "answers": ["nous"] * 10}
    write(tmp_path / "data/textvqa/TextVQA_0.5.1_val.json", {"data": [one]})
    _, rows = rows_of("textvqa/val", tmp_path, {"5": "nous"})
    assert result("textvqa/val", rows)["accuracy"] == 1
    kind = {"answer_type": "unanswerable", "answerable": 0, "answers": ten("unanswerable", "grey")}
    write(tmp_path / "data/vizwiz/val.json", [{"image": "VizWiz_val_00000000.jpg", "question": "What?", **kind}])
    opened, rows = rows_of("vizwiz/val", tmp_path, {"0": "Unanswerable"})
    assert result("vizwiz/val", rows)["accuracy/unanswerable"] == 1
    prompt = opened.units[0][0].prompt
    assert prompt.startswith("What? When the provided information is insufficient, respond with 'Unanswerable'. Answer")


def test_gqa_official_and_lines(tmp_path):
    home = tmp_path / "data" / "gqa"
    official = write(
        home / "testdev_balanced_questions.json",
        {"201307251": {"imageId": "n161313", "question": "Is it overcast?", "answer": "no"}},
    )
    _, rows = rows_of("gqa/testdev", tmp_path, {"201307251": "No."})
    assert result("gqa/testdev", rows)["accuracy"] == 1
    expected = read_open(tmp_path, "gqa/testdev")
    official.unlink()
    record = {"image": "data/gqa/images/n161313.jpg", "question": f"Is it overcast? {SHORT_ANSWER_PROMPT}"}
    write(
        home / "llava_gqa_testdev_balanced_qwen_format.jsonl",
        lines([record | {"question_id": "201307251", "answer": "no"}]),
    )
    assert read_open(tmp_path, "gqa/testdev") == expected


def test_real_official_files_are_read(conformance, tmp_path):
    folder = conformance / "vqa_allennlp"
    home = tmp_path / "data" / "vqav2"
    home.mkdir(parents=True)
    for ours, theirs in (
        ("v2_OpenEnded_mscoco_val2014_questions", "questions"),
        ("v2_mscoco_val2014_annotations",) * 2,
    ):
        name = "annotations" if "annotations" in ours else theirs
        (home / f"{ours}.json").write_bytes((folder / "vqav2" / f"{name}.json").read_bytes())
    (tmp_path / "data" / "gqa").mkdir()
    gqa = tmp_path / "data" / "gqa" / "testdev_balanced_questions.json"
    gqa.write_bytes((folder / "gqa" / "questions.json").read_bytes())
    answered = {one.id: one.truth["answers"][0] for one in read_open(tmp_path, "vqav2/val")}
    _, rows = rows_of("vqav2/val", tmp_path, answered)
    assert len(rows) == len(json.loads((folder / "vqav2" / "questions.json").read_text())["questions"]) > 0
    assert result("vqav2/val", rows)["accuracy"] > 0
    [question] = [one for one in read_open(tmp_path, "gqa/testdev") if one.picture.name == "n578564.jpg"][:1]
    image = replace(question, picture=folder / "images" / "gqa" / "n578564.jpg").image()
    assert image.mode == "RGB"


# --------------------------------------------------------------------------- yes or no


def pope(root: Path) -> Path:
    for k, name in enumerate(POPE_FILES):
        image = f"COCO_val2014_{k:012d}.jpg"
        draw(root / "data" / "coco" / "val2014" / image)
        asked = [(1, "a cat", "yes"), (2, "a dog", "no")]
        record = [
            {"question_id": number, "image": image, "text": f"Is there {thing} in the image?", "label": label}
            for number, thing, label in asked
        ]
        write(root / "data" / "pope" / "coco" / f"coco_pope_{name}.json", lines(record))
    return root


def test_pope_reads_all_three_files(tmp_path):
    root = pope(tmp_path)
    asked = read_pope(root, POPE_FILES)
    assert asked[0].prompt == f"Is there a cat in the image?\n{SHORT_ANSWER_PROMPT}"
    _, rows = rows_of("pope", root, {one.id: "Yes" if one.id.endswith("/1") else "No, there is none." for one in asked})
    found = result("pope", rows)
    assert (found["f1"], found["missing"], found["samples"]) == (1, [], 6)
    (root / "data" / "pope" / "coco" / "coco_pope_popular.json").unlink()
    with pytest.raises(DatasetError, match=r"No file .*coco_pope_popular.json; expected JSON lines with question_id"):
        read_pope(root, POPE_FILES)


def test_pope_asks_what_llava_asked(conformance, tmp_path):
    """The prompts of a published evaluation, from the official labels."""
    folder = conformance / "pope"
    home = tmp_path / "data" / "pope"
    home.mkdir(parents=True)
    for name in POPE_FILES:
        (home / f"coco_pope_{name}.json").write_bytes((folder / "coco_pope_random.json").read_bytes())
    asked = {one.prompt for one in read_pope(tmp_path, POPE_FILES) if one.id.startswith("random/")}
    theirs = [json.loads(line) for line in (folder / "llava_pope_test_random.jsonl").read_text("utf-8").splitlines()]
    shared = sum(entry["text"] in asked for entry in theirs)
    assert shared / len(theirs) > 0.9  # the two releases differ in some questions
    opened, rows = rows_of("pope", tmp_path, {f"{name}/{k + 1}": "yes" for name in POPE_FILES for k in range(3000)})
    assert len(rows) == 9000
    assert result("pope", rows)["pooled/yes"] == 1
    assert opened.problems  # no picture is here


def test_mme_of_both_layouts_with_the_breakdown_per_task(tmp_path):
    release = tmp_path / "data" / "mme" / "MME_Benchmark_release_version"
    two = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
    for task in TASKS:
        folder = release / task
        apart = task in ("artwork", "posters")
        write(folder / ("questions_answers_YN" if apart else ".") / "0001.txt", two)
        draw(folder / ("images" if apart else ".") / ("0001.png" if task == "color" else "0001.jpg"))
    asked = read_mme(tmp_path, TASKS)
    assert asked[0].prompt == f"Is it red? Please answer yes or no. {SHORT_ANSWER_PROMPT}"
    opened, rows = rows_of("mme", tmp_path, {one.id: "no" if one.id.endswith("/2") else "Yes" for one in asked})
    assert opened.problems == ()
    assert [len(unit) for unit in opened.units] == [2] * 14
    found = result("mme", rows)
    assert found["score"] == dict.fromkeys(TASKS, 200)
    assert (found["perception"], found["cognition"], found["total"], found["missing"]) == (2000, 800, 2800, [])


def test_real_mme_lists_are_read(conformance, tmp_path):
    listed = tmp_path / "data" / "mme" / "Your_Results"
    listed.mkdir(parents=True)
    there = sorted((conformance / "mme" / "Your_Results").glob("*.txt"))
    for path in there:
        (listed / path.name).write_bytes(path.read_bytes())
    opened, rows = rows_of("mme", tmp_path, {one.id: "yes" for one in read_mme(tmp_path, TASKS)})
    found = result("mme", rows)
    assert sorted(found["score"]) == sorted(path.stem for path in there)
    assert set(found["score"].values()) == {50.0}  # of two questions, always one is a yes
    assert found["total"] is None
    assert len(opened.units) * 2 == len(rows) == sum(len(path.read_text("utf-8").splitlines()) for path in there)


@pytest.mark.parametrize(
    ("text", "message"),
    [("Is it red?\n", "expected 2 fields with tabs"), ("Is it red?\tYes\n", "picture 0001.jpg has 1 questions")],
)
def test_bad_mme_files_are_named(tmp_path, text, message):
    write(tmp_path / "data" / "mme" / "MME_Benchmark_release_version" / "color" / "0001.txt", text)
    with pytest.raises(DatasetError, match=message):
        read_mme(tmp_path, TASKS)


# --------------------------------------------------------------------------- options


def picture_text() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), (0, 90, 200)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def mmbench(root: Path, table: str, *, answers=True) -> Path:
    """One question of two options with its rotation, whose picture is the first row's; and one without options C, D."""
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category", "split"]
    common = {"category": "colour", "l2-category": "perception", "split": "dev"}
    rows = [
        {"index": "7", "question": "Which\tone?", "hint": 'Look, "well".', "A": "red", "B": "blue", "answer": "B"},
        {"index": "1000007", "question": "Which\tone?", "A": "blue", "B": "red", "answer": "A", "image": "7"},
    ]
    rows[0]["image"] = picture_text()
    path = root / "data" / "mmbench" / f"{table}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", restval="")
        writer.writeheader()
        writer.writerows([{k: v for k, v in (row | common).items() if answers or k != "answer"} for row in rows])
    return root


def test_mmbench_circular_and_vanilla(tmp_path):
    root = mmbench(tmp_path, "mmbench_dev_20230712")
    opened, rows = rows_of("mmbench-en/dev", root, {"7": "B", "1000007": "B. red"})
    [unit] = opened.units  # both on one encoding
    assert unit[0].prompt == f'Look, "well".\nWhich\tone?\nA. red\nB. blue\n{ENGLISH_PROMPT}'
    assert unit[1].image().getpixel((3, 3)) == (0, 90, 200)
    found = result("mmbench-en/dev", rows)
    assert (found["circular"], found["vanilla"], found["incomplete"]) == (0, 1, 0)
    assert found["circular/colour"] == found["circular/perception"] == 0
    assert len({row["group"] for row in rows}) == 1  # the picture


def test_mmbench_in_chinese_asks_in_chinese(tmp_path):
    mmbench(tmp_path, "mmbench_dev_cn_20231003")
    [unit] = vqa.VQA_BENCHMARKS["mmbench-cn/dev"].open(tmp_path).units
    assert unit[0].prompt.endswith(CHINESE_PROMPT)


def test_a_table_that_is_none_is_named(tmp_path, conformance):
    source = next((conformance / "mmbench").glob("*.tsv"))
    home = tmp_path / "data" / "mmbench"
    home.mkdir(parents=True)
    (home / "mmbench_dev_20230712.tsv").write_bytes(source.read_bytes())
    with pytest.raises(DatasetError, match="has no column image; expected MMBench's table with pictures"):
        read_mmbench(tmp_path, "mmbench_dev_20230712")
    root = mmbench(tmp_path / "other", "mmbench_dev_20230712")
    path = root / "data" / "mmbench" / "mmbench_dev_20230712.tsv"
    path.write_text(path.read_text("utf-8").replace(picture_text(), "no picture, that is sure"), "utf-8")
    with pytest.raises(DatasetError, match="the picture of row 7 is no base64"):
        read_mmbench(root, "mmbench_dev_20230712")


# --------------------------------------------------------------------------- asked of a model


def test_a_model_is_asked_everything_and_a_failed_picture_counts_as_wrong(tiny_model, tmp_path):
    root = vqav2(tmp_path)
    benchmark = vqa.VQA_BENCHMARKS["vqav2/val"]
    opened = benchmark.open(root)
    rows = benchmark.measure(tiny_model, opened.units[0], GENERATED)
    asked = [one.prompt for one in opened.units[0]]
    image = opened.units[0][0].image()
    said = [tiny_model.chat(image, prompt, max_new_tokens=10, max_tiles=6) for prompt in asked]
    assert [row["prediction"] for row in rows] == said
    failed = benchmark.failed(opened, 1)
    assert [(row["id"], row["failed"], row["prediction"]) for row in failed] == [("7000", True, None)]
    found = result("vqav2/val", rows + failed)
    assert (found["samples"], found["failed"], found["accuracy/yes/no"]) == (3, 1, 0)


def test_drawn_scenes_are_a_benchmark_with_tags(tiny_model, monkeypatch):
    monkeypatch.setattr(vqa, "SCENES", 3)
    benchmark = vqa.VQA_BENCHMARKS["scenes-questions/test"]
    opened = benchmark.open(None)
    rows = [row for unit in opened.units for row in benchmark.measure(tiny_model, unit, GENERATED)]
    right = [row | {"prediction": f"{row['answer'].upper()}."} for row in rows]
    found = result("scenes-questions/test", right)
    assert found["accuracy"] == 1
    assert any(name.startswith("accuracy/") for name in found)
    assert benchmark.open(None).annotations == opened.annotations


def test_every_benchmark_says_what_it_lacks(tmp_path):
    for name, benchmark in vqa.VQA_BENCHMARKS.items():
        assert benchmark.answers == ("generated",)
        assert set(benchmark.protocols) <= set(PROTOCOLS)
        if name == "scenes-questions/test":
            continue
        with pytest.raises(DatasetError, match="--data ROOT"):
            benchmark.open(None)
        with pytest.raises(DatasetError, match=r"^No "):
            benchmark.open(tmp_path)


def test_questions_without_public_answers_are_not_scored(tmp_path):
    root = mmbench(tmp_path, "mmbench_dev_20230712", answers=False)
    benchmark = vqa.VQA_BENCHMARKS["mmbench-en/dev"]
    opened = benchmark.open(root)
    with pytest.raises(DatasetError, match="cannot be scored here"):
        benchmark.failed(opened, 0)


def test_what_cannot_be_judged_is_told_before_a_model_is_asked(tmp_path):
    root = vqav2(tmp_path / "a")
    path = root / "data" / "vqav2" / "v2_mscoco_val2014_annotations.json"
    content = json.loads(path.read_text("utf-8"))
    for one in content["annotations"][:2]:
        one["answers"].pop()
    write(path, content)
    [problem] = vqa.VQA_BENCHMARKS["vqav2/val"].open(root).problems
    assert "42000: 9 answers, expected a list of 10" in problem
    assert "So it is with 2 of 3 questions." in problem
    root = mmbench(tmp_path / "b", "mmbench_dev_20230712", answers=False)
    [problem] = vqa.VQA_BENCHMARKS["mmbench-en/dev"].open(root).problems
    assert "cannot be scored here" in problem
    root = vqav2(tmp_path / "c")
    path = root / "data" / "vqav2" / "v2_OpenEnded_mscoco_val2014_questions.json"
    content = json.loads(path.read_text("utf-8"))
    write(path, {"questions": [*content["questions"], content["questions"][0]]})
    [problem] = vqa.VQA_BENCHMARKS["vqav2/val"].open(root).problems
    assert "Question 42000 stands there twice" in problem


def test_a_question_on_which_the_model_fails_takes_no_other_with_it(tiny_model, tmp_path, monkeypatch):
    from self1e.inference import answering

    real = answering.answer_questions

    def answer(model, requests, **options):
        if any("How many" in question for _, questions in requests for question in questions):
            raise RuntimeError("out of memory")
        return real(model, requests, **options)

    monkeypatch.setattr(answering, "answer_questions", answer)
    benchmark = vqa.VQA_BENCHMARKS["vqav2/val"]
    rows = benchmark.measure(tiny_model, benchmark.open(vqav2(tmp_path)).units[0], GENERATED)
    assert [row["failed"] for row in rows] == [False, True]
    assert rows[1]["error"] == "RuntimeError: out of memory"
    assert "error" not in rows[0]


# --------------------------------------------------------------------------- files for servers


def test_vqav2_and_vizwiz_submissions(tmp_path):
    home = tmp_path / "data"
    asked = [{"image_id": k, "question_id": 10 * k + 1, "question": "What?"} for k in (9, 10)]
    write(home / "vqav2" / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": asked})
    _, rows = rows_of("vqav2/test-dev", tmp_path, {"101": "a dog", "91": None})
    path = write_submission("vqav2/test-dev", rows, tmp_path / "out" / "answers.json")
    assert json.loads(path.read_text()) == [{"question_id": 91, "answer": ""}, {"question_id": 101, "answer": "a dog"}]
    images = ["VizWiz_test_00000000.jpg", "VizWiz_test_00000001.jpg"]
    write(home / "vizwiz" / "test.json", [{"image": image, "question": "What?"} for image in images])
    _, rows = rows_of("vizwiz/test", tmp_path, {"0": "grün", "1": "two"})
    path = write_submission("vizwiz/test", rows[::-1], tmp_path / "vizwiz.json")
    assert json.loads(path.read_text("utf-8")) == [
        {"image": image, "answer": answer} for image, answer in zip(images, ["grün", "two"], strict=True)
    ]
    assert result("vizwiz/test", rows) == {"samples": 2, "failed": 0}


def read_workbook(path: Path) -> list[dict[str, str]]:
    """Read a sheet by its cells' places, as a spreadsheet would."""
    space = {"m": "http://schemas.openxmlformats.org/spreadsheetml/2006/main"}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            ElementTree.fromstring(archive.read(name))
        sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    table = []
    for row in sheet.findall(".//m:row", space):
        cells = {}
        for cell in row.findall("m:c", space):
            text = cell.find(".//m:t", space)
            number = cell.find("m:v", space)
            found = text if text is not None else number
            assert found is not None
            cells[re.sub(r"\d", "", cell.attrib["r"])] = found.text
        table.append(cells)
    header, *rows = table
    return [{header[place]: value for place, value in row.items()} for row in rows]


def test_mmbench_submission_is_a_workbook_without_pictures(tmp_path):
    root = mmbench(tmp_path, "mmbench_test_en_20231003", answers=False)
    _, rows = rows_of("mmbench-en/test", root, {"7": "B <&>", "1000007": "A"})
    path = write_submission("mmbench-en/test", rows, tmp_path / "answers.xlsx")
    first, second = read_workbook(path)
    assert (first["index"], first["A"], first["prediction"]) == ("7", "red", "B <&>")
    assert (second["index"], second["prediction"]) == ("1000007", "A")
    assert first["hint"] == 'Look, "well".'
    assert not {"image", "answer"} & set(first)
    assert path.read_bytes() == write_submission("mmbench-en/test", rows, tmp_path / "again.xlsx").read_bytes()


def test_a_submission_of_another_kind_is_refused(tmp_path):
    with pytest.raises(SettingError, match="'gqa/testdev' is scored here, not by a server"):
        write_submission("gqa/testdev", [{}], tmp_path / "a.json")
    with pytest.raises(SettingError, match=r"takes xlsx files; name it a.xlsx"):
        write_submission("mmbench-cn/test", [{}], tmp_path / "a.json")
    with pytest.raises(DatasetError, match="no row of vizwiz/test"):
        write_submission("vizwiz/test", [], tmp_path / "a.json")
