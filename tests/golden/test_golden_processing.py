"""Tiles, prompts and ids equal those of the published system."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from self1e.processing import prompts
from self1e.processing.image import Self1EImageProcessor, choose_grid
from self1e.processing.processor import IGNORED_LABEL, Self1EProcessor


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def turns_of(conversation: str) -> list[tuple[str, str | None]]:
    """Take a rendered conversation apart again."""
    template = prompts.INTERNVL2_5
    head = template.system_turn + template.separator
    assert conversation.startswith(head)
    user, assistant, end = (re.escape(x) for x in (template.user_header, template.assistant_header, template.separator))
    pattern = re.compile(f"{user}(.*?){end}{assistant}(.*?){end}", re.DOTALL)
    turns = [(match[1], match[2]) for match in pattern.finditer(conversation[len(head) :])]
    assert template.render(turns) == conversation
    return turns


def image_processor(side: int) -> Self1EImageProcessor:
    return Self1EImageProcessor(size={"height": side, "width": side})


def test_grids(function_file):
    golden = read(function_file("tile_grid.json"))
    wrong = []
    for row in golden["table"]:
        for key, (columns, rows) in row.items():
            if key.startswith("max_num_"):
                limit = int(key.removeprefix("max_num_"))
                found = choose_grid(tuple(row["size_wh"]), golden["image_size"], limit)
                wrong += [(row["size_wh"], limit, found)] * (found != (rows, columns))
    assert golden["table"]
    assert wrong == []


def test_pixels(function_file):
    table = function_file("preprocess.json")
    stored = load_file(function_file("preprocess.safetensors"))
    for entry in read(table):
        path = table.parent / entry["file"]
        found = image_processor(entry["input_size"])(Image.open(path), max_tiles=entry["max_num"])
        expected = stored[f"{path.stem}.max{entry['max_num']}"]
        torch.testing.assert_close(found["pixel_values"], expected, rtol=0, atol=1e-6)
        assert found["tile_grids"].tolist() == [entry["grid_cols_rows"][::-1]]


def test_validation_prompts(function_file):
    golden = read(function_file("prompts.json"))
    for kind, pattern in (("phrase", r"What is (.*?) in this image\?"), ("sentence", r"<image>\n (.*?) Please output")):
        expected = golden[f"validation_{kind}"]
        found = re.search(pattern, expected, re.DOTALL)
        assert found is not None
        question = prompts.segmentation_question(f" {found[1]} ", kind)
        assert prompts.INTERNVL2_5.render([(question, prompts.VALIDATION_ANSWER)]) == expected


def test_training_prompts(function_file):
    golden = read(function_file("prompts.json"))
    phrase = re.search(r"What is (.*?) in this image\?", golden["validation_phrase"])
    sentence = re.search(r"<image>\n (.*?) Please output", golden["validation_sentence"])
    assert phrase is not None
    assert sentence is not None
    short = [
        prompts.INTERNVL2_5.render([(question.format(text=phrase[1]), answer)])
        for question in prompts.TRAINING_QUESTIONS["phrase"]
        for answer in prompts.TRAINING_ANSWERS
    ]
    assert sorted(short) == sorted(golden["training_short"])
    long = {
        prompts.INTERNVL2_5.render([(question.format(text=sentence[1]), answer)])
        for question in prompts.TRAINING_QUESTIONS["sentence"]
        for answer in prompts.TRAINING_ANSWERS
    }
    assert golden["training_long"]
    assert set(golden["training_long"]) <= long


def test_vqa_prompt(function_file):
    golden = read(function_file("prompts.json"))
    [(question, _)] = turns_of(golden["vqa"])
    assert question.endswith(f" {prompts.SHORT_ANSWER_PROMPT}")


def test_ids_labels_and_positions(golden, function_file):
    texts = read(function_file("tokenise.json"))["texts"]
    stored = load_file(function_file("tokenise.safetensors"))
    keys = sorted(key.removesuffix(".input_ids") for key in stored if key.endswith(".input_ids"))
    assert keys
    for key in keys:
        name, text = key.rsplit(".", 1)
        processor = Self1EProcessor.from_base(golden / "tokenizers" / name, image_seq_length=4)
        turns = [(question, answer) for question, answer in texts[text]]
        ids, labels = processor.tokenize_conversation(turns, num_tiles=1)
        batch = processor.pad([ids], [labels])
        for found in ("input_ids", "labels", "position_ids"):
            assert batch[found].tolist() == stored[f"{key}.{found}"].tolist(), (key, found)


def test_case_ids(golden, case):
    config = read(case / "config.json")
    stored = load_file(case / "inputs.safetensors")
    processor = Self1EProcessor.from_base(golden / config["tokenizer"], image_seq_length=config["num_image_token"])
    for token, index in config["token_ids"].items():
        assert processor.tokenizer.convert_tokens_to_ids(token) == index, token
    sequences = [
        processor.tokenize_conversation(turns_of(sequence["conversation"]), num_tiles=sequence["tiles"])
        for sequence in config["sequences"]
    ]
    batch = processor.pad([s.input_ids for s in sequences], [s.labels for s in sequences])
    is_real = batch["attention_mask"].bool()
    assert batch["input_ids"].shape == stored["input_ids"].shape
    assert torch.equal(batch["labels"], stored["labels"])
    assert (batch["labels"][~is_real] == IGNORED_LABEL).all()
    assert torch.equal(batch["input_ids"][is_real], stored["input_ids"][is_real])
    assert torch.equal(batch["position_ids"], stored["position_ids"])


def test_case_pixels(case):
    config = read(case / "config.json")
    stored = load_file(case / "inputs.safetensors")
    process = image_processor(config["model_config"]["force_image_size"])
    pictures = []
    for image in config["images"]:
        found = process(Image.open(case / image["file"]), max_tiles=image["max_num"])
        assert found["tile_grids"].tolist() == [image["grid_cols_rows"][::-1]]
        assert found["original_sizes"].tolist() == [image["size_wh"][::-1]]
        pictures.append(found["pixel_values"])
    expected = torch.cat([pictures[sequence["image"]] for sequence in config["sequences"]])
    torch.testing.assert_close(stored["pixel_values"], expected, rtol=0, atol=1e-6)
