"""VQA, GQA, POPE, MME and MMBench: golden vectors, quirks by name, and a second implementation of the normalisers."""

from __future__ import annotations

import re

import numpy as np
import pytest

from self1e.errors import DatasetError, SettingError
from self1e.evaluation.intervals import interval_of
from self1e.evaluation.metrics.choices import ROTATION, MMBench, read_letter
from self1e.evaluation.metrics.vqa import (
    CONTRACTIONS,
    ExactMatch,
    VqaAccuracy,
    accuracy_m4c,
    accuracy_official,
    normalise_m4c,
    soft_accuracy,
)
from self1e.evaluation.metrics.yes_no import (
    COGNITION,
    PERCEPTION,
    Mme,
    Pope,
    mme_answer,
    pope_answer,
    strict_answer,
)

# --- VQA --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("same", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_golden_soft_accuracy(same, expected):
    answers = ["net"] * same + [f"other {k}" for k in range(10 - same)]
    assert soft_accuracy("net", answers) == pytest.approx(expected, abs=1e-15)
    leave_one_out = [min(1, sum(b == "net" for j, b in enumerate(answers) if j != i) / 3) for i in range(10)]
    assert soft_accuracy("net", answers) == pytest.approx(sum(leave_one_out) / 10, abs=1e-15)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        ("  The Cat.\n", "cat"),
        ("two", "2"),
        ("None", "0"),
        ("it is ten o'clock", "it is 10 o'clock"),
        ("oclock", "o'clock"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("John's", "john 's"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("5.a", "5a"),  # the look-behind is misspelt: a full stop goes unless a digit follows
        ("black/white", "black white"),
        ("black/ white", "black white"),
        ("a-b -c", "ab c"),  # one mark beside a space: deleted everywhere
        ("a-b", "b"),  # elsewhere a space, which makes "a" an article
        ("what? no!", "what no"),
        ("." * 40, "." * 8),  # 32 full stops go, since a flag is passed as the count
        ("", ""),
    ],
)
def test_m4c(text, expected):
    assert normalise_m4c(text) == expected


def naive_m4c(text):
    """The four steps of METRICS 6.2, letter by letter where the package uses patterns."""
    text = text.lower()
    text = "".join(letter for letter in text if letter not in ",?")
    text = " 's".join(text.split("'s")).strip()
    text = "".join(" " if letter in "\n\t" else letter for letter in text).strip()
    marks = ["/", ";", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]
    glued = {m for m in marks if any(text[k : k + 2] in (m + " ", " " + m) for k in range(len(text)))}
    commas = any(
        a.isdecimal() and b == "," and c.isdecimal() for a, b, c in zip(text, text[1:], text[2:], strict=False)
    )
    text = "".join("" if x in marks and (commas or x in glued) else " " if x in marks else x for x in text)
    letters, gone = [], 0
    for k, letter in enumerate(text):
        if letter == "." and gone < 32 and not text[k + 1 : k + 2].isdecimal():
            gone += 1
            continue
        letters.append(letter)
    counting = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    words = []
    for word in "".join(letters).lower().split():
        word = "0" if word == "none" else str(counting.index(word)) if word in counting else word
        if word not in ("a", "an", "the"):
            words.append(CONTRACTIONS.get(word, word))
    return " ".join(words)


def test_10000_random_strings_equal_a_second_implementation():
    rng = np.random.default_rng(0)
    pieces = [
        *"abc. .,'?!-/()_;:\n\t 0123٣²é",
        "the ",
        " a ",
        "'s",
        "two",
        "none",
        "dont",
        "ow'sat",
        "1,000",
        "北",
        "İ",
        "." * 35,
    ]
    changed = 0
    for _ in range(10_000):
        text = "".join(rng.choice(pieces, int(rng.integers(0, 14))))
        assert normalise_m4c(text) == naive_m4c(text), repr(text)
        changed += normalise_m4c(text) != text
    assert changed > 5_000


def test_the_table_of_contractions():
    assert len(CONTRACTIONS) == 114
    assert CONTRACTIONS["yall'd've"] == CONTRACTIONS["y'alld've"] == CONTRACTIONS["y'all'dve"] == "y'all'd've"
    assert CONTRACTIONS["somebody'd"] == "somebodyd"  # the one that goes the other way
    assert not {"well", "shell", "were", "shed", "ill", "im"} & set(CONTRACTIONS)
    changed = {k: v for k, v in CONTRACTIONS.items() if v.replace("'", "") != k.replace("'", "")}
    assert changed == {}


def test_the_official_rule_touches_answers_only_where_people_disagree():
    agree = ["black/white"] * 10
    assert accuracy_official("black/white", agree) == 0  # the prediction became "black white", the answers did not
    assert accuracy_official("black/white", [*agree[1:], "grey"]) == 1
    assert accuracy_m4c("black/white", agree) == 1
    assert accuracy_official("two", ["two"] * 9 + ["2"]) == 0.3  # answers keep number words
    assert accuracy_m4c("two", ["two"] * 9 + ["2"]) == 1
    assert accuracy_official("1,000", ["1,000"] * 9 + ["no"]) == 1  # a comma between digits deletes


def test_vqa_counts_by_answer_type():
    metric = VqaAccuracy()
    metric.update(1, "Yes.", ["yes"] * 10, answer_type="yes/no")
    metric.update(2, "two", ["3"] * 8 + ["2"] * 2, answer_type="number")
    metric.update(3, None, ["cat"] * 10, answer_type="other")
    found = metric.result()
    assert found["accuracy"] == pytest.approx((1 + 0.6 + 0) / 3)
    assert (found["accuracy/yes/no"], found["accuracy/number"], found["accuracy/other"]) == pytest.approx((1, 0.6, 0))
    with pytest.raises(DatasetError, match="4: 3 answers, expected a list of 10"):
        metric.update(4, "x", ["x"] * 3)
    with pytest.raises(DatasetError, match="'yes', expected a list of 10"):
        metric.update(5, "x", "yes")
    with pytest.raises(SettingError, match="known are m4c, official"):
        VqaAccuracy("evalai")  # type: ignore[arg-type]


def test_real_vqa_annotations_hold_ten_answers(conformance):
    import json

    annotations = json.loads((conformance / "vqa_allennlp/vqav2/annotations.json").read_text("utf-8"))["annotations"]
    metric = VqaAccuracy("official")
    for entry in annotations:
        answers = [answer["answer"] for answer in entry["answers"]]
        metric.update(entry["question_id"], answers[0], answers)
        most = answers.count(answers[0])
        assert metric.ratios(metric.rows[-1:])["accuracy"].value == pytest.approx([0, 0.3, 0.6, 0.9, 1][min(most, 4)])
    assert len(metric) == len(annotations) > 0


def test_gqa_is_an_exact_match():
    metric = ExactMatch()
    for k, (prediction, answer) in enumerate([("Yes.", "yes"), ("yes sir", "yes"), ("bus", "Bus"), (None, "bus")]):
        metric.update(k, prediction, answer)
    assert metric.result() == {"samples": 4, "failed": 1, "accuracy": 0.5}
    with pytest.raises(DatasetError, match="expected text"):
        metric.update(9, "2", 2)  # type: ignore[arg-type]


# --- POPE -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pope", "strict"),
    [
        ("Yes", "yes", "yes"),
        ("No, there is not.", "no", "no"),
        ("There is no dog. Yes", "no", "no"),
        ("It is not", "no", "no"),
        ("NO", "yes", "no"),
        ("no\n", "yes", "no"),
        ("nothing", "yes", "other"),
        ("", "yes", "other"),
        ("I cannot tell", "yes", "other"),
    ],
)
def test_how_pope_reads(text, pope, strict):
    assert (pope_answer(text), strict_answer(text)) == (pope, strict)


def pope_of(counts):
    metric = Pope()
    for file, (tp, fp, fn, tn) in counts.items():
        for k, (said, label) in enumerate(
            [("Yes", "yes")] * tp + [("Yes", "no")] * fp + [("No", "yes")] * fn + [("No", "no")] * tn
        ):
            metric.update(f"{file}/{k}", said, label, file=file)
    return metric


def test_golden_pope():
    found = pope_of({"random": (40, 30, 10, 5), "popular": (45, 5, 5, 0), "adversarial": (20, 2, 30, 9)}).result()
    assert round(100 * found["f1"], 4) == 70.7407
    assert round(100 * found["pooled/f1"], 4) == 71.9178
    assert found["random/accuracy"] == 45 / 85
    assert found["random/precision"] == 40 / 70
    assert found["random/recall"] == 0.8
    assert found["random/yes"] == 70 / 85
    assert found["missing"] == []


def test_pope_needs_three_files_for_its_mean_and_counts_garbage():
    metric = pope_of({"random": (3, 0, 1, 2)})
    assert metric.result()["f1"] is None
    assert metric.result()["missing"] == ["popular", "adversarial"]
    metric.update("garbage", "perhaps", "yes", file="random")
    metric.update("failed", None, "no", file="random")
    found = metric.result()
    assert found["random/recall"] == 4 / 5
    assert found["strict/random/recall"] == 3 / 5
    assert found["random/accuracy"] == 6 / 8
    with pytest.raises(DatasetError, match="no file 'rare'"):
        metric.update("x", "Yes", "yes", file="rare")
    with pytest.raises(DatasetError, match="label is 'Yes'"):
        metric.update("x", "Yes", "Yes", file="random")


# --- MME --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        (" Yes, it is", "yes"),
        ("True", "yes"),
        ("FALSE", "no"),
        ("不是", "no"),
        ("是的", "yes"),
        ("否", "no"),
        ("图中没有 yes", "yes"),  # other characters go first
        ("\n\nno", "no"),
        ("The answer is yes", "other"),
        ("", "other"),
    ],
)
def test_how_mme_reads(text, expected):
    assert mme_answer(text) == expected


def mme_task(metric, task, pictures):
    for k, answers in enumerate(pictures):
        for j, right in enumerate(answers):
            metric.update(f"{task}/{k}/{j}", "Yes" if right else "No", "yes", task=task, image=str(k))


def test_golden_mme():
    metric = Mme()
    mme_task(metric, "color", [(True, True), (True, False), (False, False)])
    found = metric.result()
    assert found["score"] == {"color": pytest.approx(83.3333, abs=5e-5)}
    assert found["perception"] is None
    assert len(found["missing"]) == 13


def test_mme_sums_its_tasks():
    metric = Mme()
    for task in (*PERCEPTION, *COGNITION):
        mme_task(metric, task, [(True, True), (True, task == "OCR")])
    found = metric.result()
    assert found["perception"] == pytest.approx(9 * 125 + 200)
    assert found["cognition"] == pytest.approx(4 * 125)
    assert found["total"] == pytest.approx(1825)


def test_mme_refuses_half_a_pair():
    metric = Mme()
    metric.update("a", "Yes", "Yes", task="count", image="1.jpg")
    with pytest.raises(DatasetError, match=r"picture 1.jpg has 1 questions, expected 2"):
        metric.result()
    with pytest.raises(DatasetError, match="Did you mean 'color'"):
        metric.update("b", "Yes", "yes", task="colour", image="1.jpg")


# --- MMBench ----------------------------------------------------------------------------------------------------------

FRUIT = {"A": "An apple", "B": "A pear", "C": "Grapes", "D": ""}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("Answer: C).", "C"),
        ("The answer is B", "B"),
        ("A", "A"),
        ("A pear", "A"),  # two words: a letter, by the published rule
        ("it shows a pear", "B"),
        ("A nice bunch of grapes", "C"),  # more than three words: "A" is taken for the article
        ("A or B", None),
        ("A. or B) is right", "A"),
        ("apples", None),
        ("an apple and grapes", None),
        ("", None),
        ("E", "E"),
    ],
)
def test_how_letters_are_read(text, expected):
    assert read_letter(text, FRUIT) == expected


def test_an_empty_option_is_none():
    assert read_letter("nothing of it", FRUIT) is None


def test_golden_mmbench():
    metric = MMBench()
    options = dict(zip("ABCD", ["w", "x", "y", "z"], strict=True))
    for base, right in ((7, 4), (8, 3)):
        for k in range(4):
            prediction = "A" if k < right else "B"
            metric.update(base + k * ROTATION, prediction, "A", options, category=f"c{base}", l2_category="l")
    found = metric.result()
    assert (found["circular"], found["vanilla"], found["incomplete"]) == (0.5, 1.0, 0)
    assert (found["circular/c7"], found["circular/c8"], found["circular/l"]) == (1, 0, 0.5)


def test_questions_about_one_picture_are_drawn_together():
    metric = MMBench()
    options = {"A": "w", "B": "x"}
    for base, picture in ((1, "p"), (2, "p"), (3, "q")):
        for k in range(2):
            metric.update(base + k * ROTATION, "A" if base < 3 else "B", "A", options, group=picture)
    found = metric.ratios(metric.rows)
    assert found["circular"].groups == ("p", "p", "q")
    assert interval_of(metric, "circular").units == interval_of(metric, "vanilla").units == 2


def test_mmbench_without_rotations_has_no_circular_accuracy():
    metric = MMBench()
    metric.update(1, "A", "A", FRUIT)
    metric.update(2, None, "C", FRUIT)
    found = metric.result()
    assert (found["vanilla"], found["circular"], found["incomplete"], found["failed"]) == (0.5, None, 2, 1)
    with pytest.raises(DatasetError, match="'D' is not among the options A, B, C"):
        metric.update(3, "A", "D", FRUIT)
    with pytest.raises(DatasetError, match="must be the table's index"):
        metric.update("q3", "A", "A", FRUIT)


def test_real_mmbench_answers(conformance):
    import csv

    with next((conformance / "mmbench").glob("*.tsv")).open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    metric = MMBench()
    for entry in table:
        metric.update(entry["index"], entry["prediction"], entry["answer"], {x: entry[x] for x in "ABCD"})
    found = metric.result()
    assert found["vanilla"] == sum(entry["prediction"] == entry["answer"] for entry in table) / len(table)
    assert found["samples"] == len({re.sub(r"\D", "", entry["index"]) for entry in table}) > 0
