"""Chat with masks: many turns about one picture, in words and in pixels.

    session = self1e.load("nano").session("street.jpg")
    for event in session.ask("What colour is the car?"):              # words, token by token
        ...
    for event in session.ask("the car", mode="segment"):              # a mask for certain
        ...

Words are written under the causal mask, with keys and values kept over all turns: a turn computes its own tokens
only. Where [SEG] is written, the conversation up to it goes through the model once more under the dual mask, in which
image tokens see this [SEG] and no earlier one; those stay in the text, as words. That pass shares nothing with the kept
text and changes nothing of it.

==========  ==============================================================================================
mode        who decides that there is a mask
==========  ==============================================================================================
auto        the model, by writing [SEG] or not
segment     the caller: the answer ``[SEG].`` is given, to the question the model was trained on
text        nobody: [SEG] is forbidden
==========  ==============================================================================================

In every mode the model's own probability of [SEG] is reported.

Memory: the kept text takes `Session.bytes_per_token` a token, at most ``max_tokens`` of them. When the next turn would
not fit, the oldest turns leave the model's view until the rest takes half of the room that picture and question leave,
and what is left is computed anew; `Session.turns` still lists them all.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, get_args

import torch
from torch import Tensor

from self1e.errors import PromptError, SettingError
from self1e.inference.events import Done, Event, Mask, Mode, NotThere, Stopped, TextDelta
from self1e.inference.segmenter import EncodedPicture, Exact, KindChoice, Self1E, finish
from self1e.inference.text_cache import TextCache, bytes_per_token
from self1e.processing.processor import IGNORED_LABEL
from self1e.processing.prompts import IMAGE_PLACEHOLDER, SEG_TOKEN, segmentation_question
from self1e.settings import check_batch
from self1e.structures import Segmentation

MAX_TOKENS = 8192
"""Longest conversation in the model's view, if the caller does not say and its positions reach so far."""


# ---------------------------------------------------------------------- turns


@dataclass(frozen=True)
class Turn:
    """A question and what became of it."""

    question: str
    """As it was asked."""
    prompt: str
    """As the model reads it: the same, or the published question around it."""
    mode: Mode
    answer_ids: tuple[int, ...]
    """Tokens of the answer, without the end of the turn."""
    text: str
    """The same in words."""
    probability: float
    """Of [SEG], see `Done`."""
    stopped: Stopped
    results: tuple[Segmentation, ...]
    """One per [SEG], in order; an empty mask says "not there"."""


@dataclass
class _Answer:
    """A turn that is being written."""

    question: str
    prompt: str
    mode: Mode
    limit: int
    ids: list[int] = field(default_factory=list)
    text: str = ""
    probabilities: list[float] = field(default_factory=list)
    decided: float | None = None
    results: list[Segmentation] = field(default_factory=list)
    stopped: Stopped = "cancelled"

    @property
    def probability(self) -> float:
        return self.decided if self.decided is not None else max(self.probabilities, default=0.0)

    def turn(self) -> Turn:
        return Turn(
            self.question,
            self.prompt,
            self.mode,
            tuple(self.ids),
            self.text,
            self.probability,
            self.stopped,
            tuple(self.results),
        )


class Session:
    """A conversation about one picture.

    One turn is written at a time; a second thread that asks meanwhile is told so.

    Args:
        model: From ``self1e.load``.
        picture: What ``Self1E.encode`` takes, or what it returned.
        mode: Of turns that do not name theirs.
        max_tiles: Most tiles of the picture, see ``Self1E.encode``.
        max_new_tokens: Longest answer.
        max_tokens: Longest conversation in the model's view, picture included; left out, as far as the model's
            positions reach, at most `MAX_TOKENS`.
        threshold: Foreground is where the logit is strictly above it.
        exact: How masks are computed, see ``Self1E.segment``. Words always come from the plain modules.
        reject: Say "not there" where a mask scores below the model's calibrated threshold, if it has one.

    Raises:
        SettingError: A setting cannot work.
        PictureError: The picture cannot be read.
    """

    def __init__(
        self,
        model: Self1E,
        picture: Any,
        *,
        mode: Mode = "auto",
        max_tiles: int | None = None,
        max_new_tokens: int = 256,
        max_tokens: int | None = None,
        threshold: float = 0.0,
        exact: Exact = "auto",
        reject: bool = True,
    ) -> None:
        check_batch(threshold=threshold, batch_size=None)
        self.model = model
        self.mode: Mode = check_mode(mode)
        self.max_new_tokens = _at_least_one("max_new_tokens", max_new_tokens)
        self.threshold, self.reject = threshold, reject
        self.exact: Exact = exact
        self.max_tokens = self._checked_max_tokens(max_tokens)
        engine = model._engine(exact)
        self.encoded: EncodedPicture = model._encoded(picture, max_tiles, exact, engine)
        self.turns: tuple[Turn, ...] = ()
        """All of them, oldest first, also those that have left the model's view."""
        self.first_turn = 0
        """Number of the oldest turn in the model's view."""
        self._text = TextCache(model, self.encoded)
        self._ids: list[int] = []  # the conversation in view, without the end of the last answer
        self._busy = threading.Lock()
        self._stop = threading.Event()
        self._check_room(self._begin("x"), max_new_tokens)

    # ------------------------------------------------------------------ what it costs

    @property
    def bytes_per_token(self) -> int:
        """Memory that a token of the conversation holds between turns."""
        return bytes_per_token(self.model.model.config.text_config, self.model.dtype)

    @property
    def max_bytes(self) -> int:
        """Most memory that the conversation holds between turns; the picture's features come on top."""
        return self.bytes_per_token * self.max_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens of the conversation in the model's view, picture included."""
        return len(self._ids)

    def _checked_max_tokens(self, max_tokens: int | None) -> int:
        reach = getattr(self.model.model.config.text_config, "max_position_embeddings", None)
        if max_tokens is None:
            return min(MAX_TOKENS, reach or MAX_TOKENS)
        _at_least_one("max_tokens", max_tokens)
        if reach is not None and max_tokens > reach:
            raise SettingError(f"max_tokens={max_tokens}, but this model's positions reach {reach} tokens.")
        return max_tokens

    # ------------------------------------------------------------------ asking

    def ask(
        self,
        text: str,
        *,
        mode: Mode | None = None,
        kind: KindChoice = "auto",
        template: str | None = None,
        max_new_tokens: int | None = None,
    ) -> Iterator[Event]:
        """Take one turn; the answer is written while the events are consumed.

        Closing the iterator, or breaking out of the loop over it, ends the turn where it is, and what was written
        stays in the conversation. Should computing fail, the turn is as if it had not been asked.

        Args:
            text: A question, or with ``mode="segment"`` what to find. Not trusted: words that spell a control token
                stay words.
            mode: For this turn.
            kind: With ``mode="segment"``: ``"phrase"``, ``"sentence"`` or ``"auto"``, see ``Self1E.segment``.
            template: With ``mode="segment"``: a question of your own with ``{text}``.
            max_new_tokens: Longest answer of this turn.

        Returns:
            `TextDelta` as words come; `Mask` or `NotThere` after each [SEG]; `Done` at the end.

        Raises:
            PromptError: There are no words, or with the picture alone they are too many.
            SettingError: A setting cannot work, or another turn is being written.
        """
        chosen = self.mode if mode is None else check_mode(mode)
        limit = self.max_new_tokens if max_new_tokens is None else _at_least_one("max_new_tokens", max_new_tokens)
        if not isinstance(text, str) or not text.strip():
            raise PromptError(f"text={text!r}; expected words.")
        prompt = segmentation_question(text, kind, template) if chosen == "segment" else text.strip()
        self._check_room(self._begin(prompt), limit)
        return self._events(_Answer(text.strip(), prompt, chosen, limit))

    def cancel(self) -> None:
        """End the turn that is being written, from another thread, before its next token; without one do nothing."""
        self._stop.set()

    def _events(self, answer: _Answer) -> Iterator[Event]:
        """Write an answer, keep the turn, say that it is done."""
        if not self._busy.acquire(blocking=False):
            raise SettingError("Another turn is being written: take its events to the end, or close them, first.")
        try:
            self._stop.clear()
            dropped = self._make_room(answer)
            before = self._ids + self._prompt_ids(answer.prompt)
            known = self._text.known(before)
            try:
                yield from self._give(answer, before) if answer.mode == "segment" else self._write(answer, before)
            except GeneratorExit:
                self._keep(answer, before)
                raise
            self._keep(answer, before)
        finally:
            self._busy.release()
        yield Done(
            text=answer.text,
            mode=answer.mode,
            decision="segment" if self._seg in answer.ids else "text",
            probability=answer.probability,
            stopped=answer.stopped,
            new_tokens=len(answer.ids),
            prompt_tokens=len(before) - known,
            known_tokens=known,
            dropped_turns=dropped,
        )

    def _keep(self, answer: _Answer, before: Sequence[int]) -> None:
        self.turns += (answer.turn(),)
        self._ids = [*before, *answer.ids]

    # ------------------------------------------------------------------ writing

    def _give(self, answer: _Answer, before: list[int]) -> Iterator[Event]:
        """Give the published answer; the model is only asked what it thinks of it."""
        answer.decided = self._probability(self._text.next_logits(before))
        answer.ids += self._answer_ids(SEG_TOKEN * self._count + ".")
        answer.stopped = "end"
        yield from self._told(answer, before, with_mask=True)

    def _write(self, answer: _Answer, before: list[int]) -> Iterator[Event]:
        """Let the model write, greedily."""
        forbidden = [self.model.processor.image_token_id]  # it would be taken for a part of the picture
        forbidden += [self._seg] if answer.mode == "text" else []
        end = self.model.processor.turn_end_id
        while len(answer.ids) < answer.limit:
            if self._stop.is_set():
                break
            logits = self._text.next_logits(before + answer.ids)
            probability = self._probability(logits)
            answer.probabilities.append(probability)
            token = _likeliest(logits, forbidden)
            if token == end:
                answer.stopped = "end"
                break
            is_seg = token == self._seg
            answer.ids += [token] * (self._count if is_seg else 1)  # of several [SEG] tokens the first decides
            if is_seg and answer.decided is None:
                answer.decided = probability
            yield from self._told(answer, before, with_mask=is_seg)
        else:
            answer.stopped = "length"
        yield from self._told(answer, before, is_last=True)

    def _told(
        self, answer: _Answer, before: Sequence[int], *, with_mask: bool = False, is_last: bool = False
    ) -> list[TextDelta | Mask | NotThere]:
        """What there is to tell after some more tokens: words, but no letter before all its bytes are there; a mask.

        All of it is made before any is handed out: whoever leaves between the two leaves no [SEG] without its mask.
        """
        tokenizer: Any = self.model.processor.tokenizer
        words = tokenizer.decode(answer.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        told: list[TextDelta | Mask | NotThere] = []
        if len(words) > len(answer.text) and (is_last or with_mask or not words.endswith("\ufffd")):
            told.append(TextDelta(words[len(answer.text) :]))
            answer.text = words
        return [*told, self._read(answer, before)] if with_mask else told

    def _read(self, answer: _Answer, before: Sequence[int]) -> Mask | NotThere:
        """Read the mask of the [SEG] that was just written: one pass over the conversation under the dual mask."""
        row = [*before, *answer.ids]
        logits = self.model.read_rows(self.encoded, [row], exact=self.exact, only_last=True)[0]
        found = self._finish(answer, logits[0])
        score = float(found.scores[0])
        least = self.model.no_target_threshold if self.reject else None
        is_there = not bool(found.is_empty[0]) and (least is None or score >= least)
        answer.results.append(found if is_there else self._finish(answer, None))
        return Mask(found) if is_there else NotThere(answer.results[-1], score)

    def _finish(self, answer: _Answer, logits: Tensor | None) -> Segmentation:
        return finish(self.encoded, [answer.question], [logits], threshold=self.threshold, text=[answer.text])

    @property
    def _seg(self) -> int:
        return self.model.processor.seg_token_id

    @property
    def _count(self) -> int:
        """[SEG] tokens per mask."""
        return self.model.model.config.num_seg_tokens

    def _probability(self, logits: Tensor) -> float:
        return float(logits.softmax(dim=-1)[self._seg])

    # ------------------------------------------------------------------ tokens

    def _begin(self, prompt: str) -> list[int]:
        """Everything up to the first answer, with the picture."""
        grid = self.encoded.grid
        return self.model.processor.tokenize_conversation([(prompt, None)], num_tiles=grid.num_tiles).input_ids

    def _prompt_ids(self, prompt: str) -> list[int]:
        """What follows the conversation in view up to the next answer."""
        if not self._ids:
            return self._begin(prompt)
        words = prompt.removeprefix(f"{IMAGE_PLACEHOLDER}\n")  # the picture was shown with the first question
        ids = self.model.processor.tokenize_conversation([("x", "x"), (words, None)], num_tiles=0).input_ids
        ends = [index for index, token in enumerate(ids) if token == self.model.processor.turn_end_id]
        return ids[ends[-2] :]  # the end of the answer "x", and what follows it

    def _answer_ids(self, answer: str) -> list[int]:
        """Tokens of an answer of ours."""
        labels = self.model.processor.tokenize_conversation([("x", answer)], num_tiles=0).labels
        return [label for label in labels if label != IGNORED_LABEL][:-1]  # without the end of the turn

    def _see(self, first: int) -> None:
        """Put the turns from ``first`` on into the model's view."""
        self.first_turn, self._ids = first, []
        for turn in self.turns[first:]:
            self._ids += [*self._prompt_ids(turn.prompt), *turn.answer_ids]

    # ------------------------------------------------------------------ room

    def _needed(self, prompt_ids: Sequence[int], limit: int) -> int:
        return len(prompt_ids) + limit + self._count

    def _check_room(self, prompt_ids: Sequence[int], limit: int) -> None:
        """Refuse a question that has no room even alone."""
        needed = self._needed(prompt_ids, limit)
        if needed > self.max_tokens:
            image = self.encoded.grid.num_tiles * self.model.processor.image_seq_length
            raise PromptError(
                f"The picture ({image} tokens), the question ({len(prompt_ids) - image}) and an answer of up to "
                f"{limit} need {needed} tokens, max_tokens={self.max_tokens}: ask shorter, lower max_new_tokens or "
                "max_tiles, or raise max_tokens."
            )

    def _make_room(self, answer: _Answer) -> int:
        """Drop the oldest turns if the next one would not fit; say how many."""

        def needed() -> int:
            return len(self._ids) + self._needed(self._prompt_ids(answer.prompt), answer.limit)

        if needed() <= self.max_tokens:
            return 0
        before = self.first_turn
        alone = self._needed(self._begin(answer.prompt), answer.limit)
        # To half of the room, not to the brim: what is left is computed anew, which should not happen at every turn.
        while self._ids and needed() > (alone + self.max_tokens) // 2:
            self._see(self.first_turn + 1)
        self._text.clear()
        return self.first_turn - before

    # ------------------------------------------------------------------ files

    def save(self, path: str | Path) -> Path:
        """Write the conversation with its masks as JSON, see `self1e.inference.saved_session`."""
        from self1e.inference.saved_session import save_session

        return save_session(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, model: Self1E, *, picture: Any = None) -> Self:
        """Go on with a conversation that was saved.

        Args:
            path: What ``save`` wrote.
            model: The same model: other weights are refused.
            picture: The same picture, if it is not where it was, or came from no file.

        Raises:
            SettingError: The file is not a saved session.
            CheckpointError: It was another model.
            PictureError: The picture is another one, or cannot be found.
        """
        from self1e.inference.saved_session import load_session

        return load_session(cls, Path(path), model, picture)

    def restore(self, turns: Sequence[Turn], first_turn: int) -> None:
        """Take over the turns of an earlier session; its words are computed anew with the next question."""
        self.turns = tuple(turns)
        self._text.clear()
        self._see(first_turn)


def check_mode(mode: Any) -> Mode:
    """Return the mode, or say that it is none."""
    if mode not in get_args(Mode):
        raise SettingError(f"mode={mode!r} is unknown; choose one of {', '.join(get_args(Mode))}.")
    return mode


def _at_least_one(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SettingError(f"{name}={value!r} must be a whole number of at least 1.")
    return value


def _likeliest(logits: Tensor, forbidden: Sequence[int]) -> int:
    allowed = logits.clone()
    allowed[list(forbidden)] = -torch.inf
    return int(allowed.argmax())
