"""Questions with answers: LLaVA's conversations, JSON lines, and the lines from official downloads."""

import json

import pytest
from PIL import Image

from self1e.data.vqa import VQA_SETS, LlavaInstruct, VqaLines, convert, most_frequent, read_turns
from self1e.errors import DatasetError


def say(*texts, first="human"):
    speakers = ["human", "gpt"] if first == "human" else ["gpt", "human"]
    return [{"from": speakers[number % 2], "value": text} for number, text in enumerate(texts)]


def test_a_conversation_keeps_its_turns_and_loses_its_placeholder():
    assert read_turns(say("What colour?\n<image>", " Red. ", "Sure?", "Yes.")) == [
        ("What colour?", "Red."),
        ("Sure?", "Yes."),
    ]
    assert read_turns(say("Hello.", "<image>\nWhat?", "A bus.", first="gpt")) == [("What?", "A bus.")]
    assert read_turns(say("What?", "A bus.", "And?")) == [("What?", "A bus.")]


@pytest.mark.parametrize("broken", [[], say("What?"), say("a", "b", "c", "d")[::2]])
def test_a_conversation_without_turns_is_refused(broken):
    with pytest.raises(ValueError, match="speakers"):
        read_turns(broken)


@pytest.fixture
def llava(tmp_path):
    (tmp_path / "llava_dataset").mkdir()
    (tmp_path / "coco/train2017").mkdir(parents=True)
    Image.new("RGB", (6, 5)).save(tmp_path / "coco/train2017/000000000009.jpg")
    records = [
        {"id": "9", "image": "000000000009.jpg", "conversations": say("<image>\nWhat?", "A bus.", "And?", "A dog.")},
        {"id": "8", "image": "000000000009.jpg", "conversations": say("What?")},
    ]
    (tmp_path / "llava_dataset/llava_instruct_150k.json").write_text(json.dumps(records))
    return tmp_path


def test_llava_has_one_question_with_all_turns_before_it(llava):
    samples = LlavaInstruct(llava)
    assert len(samples) == 2
    (question,) = samples[0].questions
    assert (question.before, question.text, question.answer) == ((("What?", "A bus."),), "And?", "A dog.")
    assert (samples[0].image.size, samples[0].source) == ((6, 5), "llava_instruct_150k/0")
    with pytest.raises(DatasetError, match=r"llava_instruct_150k/1: record 1 of .*\.json is malformed"):
        samples[1]


VQA_QUESTIONS = {"questions": [{"image_id": 9, "question": "Whose café?", "question_id": 9001}]}
VQA_ANSWERS = {
    "annotations": [
        {
            "question_id": 9001,
            "image_id": 9,
            "answers": [{"answer": answer, "answer_id": 1} for answer in ("his", "hers", "hers")],
        }
    ]
}
DOWNLOADS = {
    "vqav2": (VQA_QUESTIONS, {"annotations": [{**VQA_ANSWERS["annotations"][0], "multiple_choice_answer": "hers"}]}),
    "okvqa": (VQA_QUESTIONS, VQA_ANSWERS),
    "textvqa": (
        {
            "data": [
                {"image_id": "f1", "question": "Whose café?", "question_id": 9001, "answers": ["hers", "his", "hers"]}
            ]
        },
    ),
    "vizwiz": ([{"image": "VizWiz_1.jpg", "question": "Whose café?", "answers": [{"answer": "hers"}]}],),
    "gqa": ({"9001": {"imageId": "n1", "question": "Whose café?", "answer": "hers"}},),
}
PICTURES = {
    "vqav2": "coco/train2014/COCO_train2014_000000000009.jpg",
    "okvqa": "coco/train2014/COCO_train2014_000000000009.jpg",
    "textvqa": "textvqa/train_images/f1.jpg",
    "vizwiz": "vizwiz/train/VizWiz_1.jpg",
    "gqa": "gqa/images/n1.jpg",
}


@pytest.mark.parametrize("name", VQA_SETS)
def test_an_official_download_becomes_lines_that_training_reads(tmp_path, name):
    downloads = []
    for file_name, found in zip(VQA_SETS[name].downloads, DOWNLOADS[name], strict=True):
        downloads.append(tmp_path / file_name)
        downloads[-1].write_text(json.dumps(found))
    data = tmp_path / "data"
    written = convert(name, downloads, data)
    assert written == data / VQA_SETS[name].lines
    (record,) = map(json.loads, written.read_text("utf-8").splitlines())
    assert list(record) == ["image", "question", "question_id", "answer"]
    assert record["image"] == f"data/{PICTURES[name]}"
    picture = data / PICTURES[name]
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5)).save(picture)
    (sample,) = VqaLines(data, name)
    (question,) = sample.questions
    unanswerable = "When the provided information is insufficient, respond with 'Unanswerable'. "
    short = "Answer the question using a single word or phrase."
    assert question.text == f"Whose café? {unanswerable if name == 'vizwiz' else ''}{short}"
    assert question.answer == "hers"
    assert sample.source == f"{name}/1"


def test_of_equals_the_first_answer_is_taken():
    assert most_frequent(["b", "a", "a", "b", "c"]) == "b"


def test_lines_are_found_among_blank_ones_and_malformed_ones_are_named(tmp_path):
    path = tmp_path / "data/gqa/train_balanced.jsonl"
    path.parent.mkdir(parents=True)
    (tmp_path / "data/coco/train2017").mkdir(parents=True)
    Image.new("RGB", (6, 5)).save(tmp_path / "data/coco/train2017/000000000009.jpg")
    line = {"image": "data/coco/train2014/COCO_train2014_000000000009.jpg", "question": "Q", "answer": "é"}
    path.write_text(f"\n{json.dumps(line, ensure_ascii=False)}\r\n\n[1]\n{json.dumps(line)}", "utf-8", newline="")
    samples = VqaLines(tmp_path / "data", "gqa")
    assert len(samples) == 3
    assert samples[0].questions == samples[2].questions == samples[-1].questions
    with pytest.raises(DatasetError, match=r"gqa/2: line 2 of .*train_balanced\.jsonl is malformed at TypeError"):
        samples[1]
    with pytest.raises(IndexError):
        samples[3]


def test_what_cannot_be_converted_says_what_is_expected(tmp_path):
    path = tmp_path / "questions.json"
    path.write_text('{"questions": []}')
    with pytest.raises(DatasetError, match=r"vqav2 is made from 2 file\(s\), found 1; give v2_OpenEnded"):
        convert("vqav2", [path], tmp_path)
    with pytest.raises(DatasetError, match=r"cannot be read at KeyError\('annotations'\); expected the official"):
        convert("vqav2", [path, path], tmp_path)
    with pytest.raises(DatasetError, match=r"cannot be read at KeyError\('data'\)"):
        convert("textvqa", [path], tmp_path)
    with pytest.raises(DatasetError, match=r"Unknown data set 'vqa2'\. Did you mean 'vqav2'\?"):
        convert("vqa2", [path], tmp_path)
    assert not (tmp_path / "vqav2").exists()


def test_a_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(
        DatasetError, match=r"No file .*okvqa_train\.jsonl; .* with self1e\.data\.vqa\.convert\('okvqa'"
    ):
        VqaLines(tmp_path, "okvqa")
