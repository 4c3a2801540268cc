import subprocess
import sys

import pytest

from self1e.errors import PromptError, SettingError
from self1e.processing import prompts


@pytest.mark.parametrize(
    "text",
    [
        "the red cup",
        "cup",
        "Cup?",
        "can of soda",
        "point guard",
        "mask on the left",
        "show dog",
        "man in front, left",
        "may pole",
        "the woman who is smiling",
        "2nd from left",
    ],
)
def test_phrases(text):
    assert prompts.guess_kind(text) == "phrase"


@pytest.mark.parametrize(
    "text",
    [
        "Which object holds water?",
        "What could I drink from",
        "where is the dog",
        "Find the cup closest to the edge",
        "please show me the exit",
        "Can you see a dog",
        "The animal that barks.",
        "哪个物体 可以装水？",  # noqa: RUF001
        "could a person sit here",
    ],
)
def test_sentences(text):
    assert prompts.guess_kind(text) == "sentence"


def test_published_questions_have_a_space_after_the_newline():
    assert (
        prompts.segmentation_question(" The Red Cup ", "phrase")
        == "<image>\n What is the red cup in this image? Please output segmentation mask."
    )
    assert (
        prompts.segmentation_question(" Which one holds Water? ")
        == "<image>\n Which one holds Water? Please output segmentation mask."
    )


def test_a_template_of_ones_own():
    assert prompts.segmentation_question("A {cup}", "phrase", "Segment {text} {{now}}.") == "Segment a {cup} {now}."


@pytest.mark.parametrize(
    "template",
    [
        "no field",
        "{text} {text}",
        "{text} {other}",
        "{}",
        "{0}",
        "{text!r}",
        "{text:>9}",
        "{text.upper}",
        "{text",
        "a <image> {text}",
    ],
)
def test_a_template_that_cannot_work_is_an_error(template):
    with pytest.raises(PromptError, match="template="):
        prompts.segmentation_question("cup", "phrase", template)


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_query_is_an_error(text):
    with pytest.raises(PromptError, match="empty query"):
        prompts.segmentation_question(text)


def test_an_unknown_kind_is_an_error():
    with pytest.raises(PromptError, match="kind='word'"):
        prompts.segmentation_question("cup", "word")  # pyright: ignore[reportArgumentType]


def test_explanatory_questions_join_with_one_space():
    assert (
        prompts.explanatory_question("Which one? ")
        == "<image>\nWhich one? Please output segmentation mask and explain why."
    )


def test_templates_render_turns():
    assert prompts.INTERNVL2_5.render([("<image>\nHi", "Yes"), ("And?", None)]) == (
        "<|im_start|>system\nYou are an helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompts.INTERNLM2_CHAT.render([("Hi", None)]).endswith(
        "助手。<|im_end|><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n"
    )


def test_templates_are_found_by_name():
    assert prompts.get_template("internlm2-chat") is prompts.INTERNLM2_CHAT
    with pytest.raises(SettingError, match="choose one of internvl2_5,"):
        prompts.get_template("internvl3")
    with pytest.raises(SettingError, match="separator"):
        prompts.ChatTemplate(name="x", system_message="y", separator="\n")


def test_prompts_need_neither_torch_nor_transformers():
    code = "import sys, self1e.processing.prompts; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=False).returncode
        == 0
    )
