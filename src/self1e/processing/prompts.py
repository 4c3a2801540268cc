"""Prompts, to the letter: the chat templates and the questions the weights were trained on (METHOD section 3.6).

Nothing here needs torch or transformers. A prompt is data: one space more or less is another prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Literal

from self1e.errors import PromptError, SettingError

Kind = Literal["phrase", "sentence"]
KindChoice = Kind | Literal["auto"]

IMAGE_PLACEHOLDER = "<image>"
"""Where the picture goes in a question; it becomes ``<img>``, the image tokens, ``</img>``."""
IMAGE_START, IMAGE_END, IMAGE_TOKEN = "<img>", "</img>", "<IMG_CONTEXT>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
SEG_TOKEN, SEGT_TOKEN = "[SEG]", "[SEGT]"
"""``[SEGT]`` is never used; the authors left it in by mistake, but released vocabularies hold it (METHOD 1.3)."""

ENGLISH_SYSTEM = "You are an helpful assistant."
"""Spelt "an", as published."""
_CHINESE_SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"  # noqa: RUF001
)
_CHINESE_SYSTEM_2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"  # noqa: RUF001
)


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """How turns become one string: role text, message, separator."""

    name: str
    """What ``config.template`` of a checkpoint calls it."""
    system_message: str
    """Text of the system turn."""
    separator: str = TURN_END + "\n"
    """After every turn. Starts with ``<|im_end|>``, which is what generation stops at."""

    def __post_init__(self) -> None:
        if not self.separator.startswith(TURN_END):
            raise SettingError(f"template.separator={self.separator!r} must start with {TURN_END}, where answers stop.")

    @property
    def system_turn(self) -> str:
        """The system turn without its separator."""
        return f"{TURN_START}system\n{self.system_message}"

    @property
    def user_header(self) -> str:
        """What introduces a question."""
        return f"{TURN_START}user\n"

    @property
    def assistant_header(self) -> str:
        """What introduces an answer; a generation prompt ends with it."""
        return f"{TURN_START}assistant\n"

    def render(self, turns: Sequence[tuple[str, str | None]]) -> str:
        """Render question and answer turns as one string, ``<image>`` left as it is.

        Args:
            turns: Questions and answers. A last answer of None ends the string where the answer begins.
        """
        text = self.system_turn + self.separator
        for question, answer in turns:
            text += self.user_header + question + self.separator + self.assistant_header
            if answer is not None:
                text += answer + self.separator
        return text

    def jinja(self) -> str:
        """The same template for ``processor.apply_chat_template``.

        A message's content is a string, or parts of type ``image`` (becomes ``<image>`` and a newline) and
        ``text``. A leading system message replaces the template's own.
        """
        # The message last: it may hold any words, these two included.
        text = _JINJA.replace("SEPARATOR", json.dumps(self.separator))
        return text.replace("SYSTEM", json.dumps(self.system_message, ensure_ascii=False))


_JINJA = """\
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\n' + SYSTEM + SEPARATOR -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('Unknown role ' + message['role'] + '; expected system, user or assistant.') -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{- '<image>\\n' -}}
{%- elif part['type'] == 'text' -%}
{{- part['text'] -}}
{%- else -%}
{{- raise_exception('Unknown content ' + part['type'] + '; expected image or text.') -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- SEPARATOR -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

INTERNVL2_5 = ChatTemplate(name="internvl2_5", system_message=ENGLISH_SYSTEM)
"""Training and mask inference of every base model, and chat of InternVL3."""
INTERNVL2_5_CHINESE = ChatTemplate(name="internvl2_5-chinese", system_message=_CHINESE_SYSTEM_2_5)
"""Chat of InternVL2.5: what the InternVL2 package calls ``internvl2_5``."""
INTERNLM2_CHAT = ChatTemplate(name="internlm2-chat", system_message=_CHINESE_SYSTEM, separator=TURN_END)
"""Chat of InternVL2-2B and -8B."""
HERMES_2 = ChatTemplate(name="Hermes-2", system_message=_CHINESE_SYSTEM, separator=TURN_END)
"""Chat of the InternVL2 models on Hermes-2."""

TEMPLATES = {template.name: template for template in (INTERNVL2_5, INTERNVL2_5_CHINESE, INTERNLM2_CHAT, HERMES_2)}
"""Chat templates by name."""


def get_template(name: str) -> ChatTemplate:
    """Find a chat template by its name."""
    if name not in TEMPLATES:
        raise SettingError(f"template={name!r} is unknown; choose one of {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]


VALIDATION_QUESTIONS: dict[Kind, str] = {
    "phrase": "<image>\n What is {text} in this image? Please output segmentation mask.",
    "sentence": "<image>\n {text} Please output segmentation mask.",
}
"""Mask inference. The space after the newline is published, and belongs there."""
VALIDATION_ANSWER = "[SEG]."

TRAINING_QUESTIONS: dict[Kind, tuple[str, ...]] = {
    "phrase": (
        "<image>\nCan you segment the {text} in this image?",
        "<image>\nPlease segment the {text} in this image.",
        "<image>\nWhat is {text} in this image? Please respond with segmentation mask.",
        "<image>\nWhat is {text} in this image? Please output segmentation mask.",
    ),
    "sentence": (
        "<image>\n{text} Please respond with segmentation mask.",
        "<image>\n{text} Please output segmentation mask.",
    ),
}
"""Training draws one at random; no space after the newline here."""
TRAINING_ANSWERS = (
    "It is [SEG].",
    "Sure, [SEG].",
    "Sure, it is [SEG].",
    "Sure, the segmentation result is [SEG].",
    "[SEG].",
)
EXPLANATORY_SUFFIXES = (
    "Please output segmentation mask and explain why.",
    "Please output segmentation mask and explain the reason.",
    "Please output segmentation mask and give some explanation.",
)
"""Joined to a sentence with one space: see :func:`explanatory_question`."""

SHORT_ANSWER_PROMPT = "Answer the question using a single word or phrase."
"""Follows the question of VQAv2, OK-VQA, TextVQA and GQA after one space (METHOD 7.1)."""
UNANSWERABLE_PROMPT = (
    "When the provided information is insufficient, respond with 'Unanswerable'. " + SHORT_ANSWER_PROMPT
)
"""The same for VizWiz."""


_ARTICLE = re.compile(r"^(the|an?)\s+(?=\S)", re.IGNORECASE)


def without_article(text: str) -> str:
    """Return words without the article that they begin with; words without one as they are."""
    return _ARTICLE.sub("", text)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_QUESTION_WORDS = _words("what which who whom whose where when why how is are was were do does did could would should")
_COMMANDS = _words(
    "segment find identify locate detect select choose highlight outline circle mask show point mark pick give tell "
    "look please"
)
# Most commands are nouns too ("point guard", "mask on the left"); what follows them tells.
_AFTER_COMMAND = _words(
    "the a an all any each every everything this that these those which what where who whatever out to me us my your "
    "his her their our one two both only just segment find identify locate detect select choose highlight outline "
    "circle mask show point mark pick give tell look"
)
_PRONOUNS = _words("you i we it they he she someone anyone")


def guess_kind(text: str) -> Kind:
    """Guess whether words are a noun phrase or a sentence.

    A sentence is text of at least two words that

    1. ends with ``?``, ``.`` or ``!`` (or the full-width forms), or
    2. starts with a question word or an auxiliary ("which", "where", "is", "could", ...; "can", "may" and
       "will" only before a pronoun, because of "can of soda"), or
    3. starts with a command ("find", "show", "please", ...) before an article, a pronoun or another command,
       because of "point guard".

    All else is a phrase. The two get different prompts, and phrases are lower-cased: pass ``kind`` where it is known.
    """
    text = text.strip()
    words = re.findall(r"[^\W_]+", text.lower())
    if len(words) < 2:
        return "phrase"
    if text.endswith(("?", ".", "!", "？", "。", "！")):  # noqa: RUF001
        return "sentence"
    first, second = words[0], words[1]
    if first in _QUESTION_WORDS or (first in {"can", "may", "will"} and second in _PRONOUNS):
        return "sentence"
    return "sentence" if first in _COMMANDS and second in _AFTER_COMMAND else "phrase"


def normalise(text: str, kind: Kind) -> str:
    """Strip the text, and lower-case it if it is a phrase, as published (METHOD 7.2)."""
    text = text.strip()
    if not text:
        raise PromptError("Found an empty query; expected words that name something in the picture.")
    return text.lower() if kind == "phrase" else text


def check_question_template(template: str) -> str:
    """Check a question template of one's own: plain text with ``{text}`` once, and ``<image>`` first or not at all.

    Returns:
        The template.
    """
    try:
        fields = [(name, spec, how) for _, name, spec, how in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise PromptError(f"template={template!r} is not a format string ({error}); write {{{{ for a brace.") from error
    if fields != [("text", "", None)]:
        raise PromptError(
            f"template={template!r} must hold {{text}} exactly once and no other field; "
            "for example 'Please segment {text}.'; write {{ and }} for braces."
        )
    if IMAGE_PLACEHOLDER in template.removeprefix(IMAGE_PLACEHOLDER):
        raise PromptError(f"template={template!r} may hold {IMAGE_PLACEHOLDER} only at its start.")
    return template


def segmentation_question(text: str, kind: KindChoice = "auto", template: str | None = None) -> str:
    """Ask for the mask of something, in the published words.

    Args:
        text: What to find, as a person would type it.
        kind: ``phrase``, ``sentence``, or ``auto`` to guess (see :func:`guess_kind`).
        template: A format string of one's own with ``{text}``, in place of the published question.

    Returns:
        A question that starts with ``<image>`` if the template does; the published ones do.
    """
    if kind not in ("phrase", "sentence", "auto"):
        raise PromptError(f"kind={kind!r} is unknown; choose phrase, sentence or auto.")
    known: Kind = guess_kind(text) if kind == "auto" else kind
    question = VALIDATION_QUESTIONS[known] if template is None else check_question_template(template)
    return question.format(text=normalise(text, known))


def check_queries(
    queries: str | Sequence[str], kind: KindChoice | Sequence[KindChoice] = "auto", template: str | None = None
) -> list[tuple[str, KindChoice]]:
    """Pair every query with its kind, or say what is wrong with it.

    Args:
        queries: One, or several.
        kind: One for all, or one each.
        template: Is checked too, see ``segmentation_question``.
    """
    if isinstance(queries, str):
        queries = [queries]
    if not isinstance(queries, Iterable):
        raise PromptError(f"queries is {queries!r:.80}; expected a string, or several.")
    texts = list(queries)
    if not texts:
        raise PromptError("Found no query; ask for at least one thing, e.g. 'the red cup'.")
    kinds: list[KindChoice] = [kind] * len(texts) if isinstance(kind, str) else list(kind)  # type: ignore[list-item]
    if len(kinds) != len(texts):
        raise PromptError(f"Found {len(kinds)} kinds for {len(texts)} queries; pass one for all, or one each.")
    for index, (text, known) in enumerate(zip(texts, kinds, strict=True)):
        if not isinstance(text, str):
            raise PromptError(f"Query {index} is {text!r:.80} ({type(text).__name__}); expected a string.")
        segmentation_question(text, known, template)
    return list(zip(texts, kinds, strict=True))


def explanatory_question(text: str, suffix: str = EXPLANATORY_SUFFIXES[0]) -> str:
    """Ask for a mask and for reasons (METHOD 3.6)."""
    return f"{IMAGE_PLACEHOLDER}\n{normalise(text, 'sentence')} {suffix}"
