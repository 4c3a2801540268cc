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

Where the base's tensors are at hand (`self1e.inference.base_answers`), turns of mode text may be answered with the
adapter off: by the base model, bit for bit. Its keys and values are not the trained model's, so each of the two keeps a
text of its own, and catches up on what was said to the other when its turn comes. Masks are read, and [SEG] is decided
on, by the trained model alone.

Memory: a kept text takes `Session.bytes_per_token` a token, at most ``max_tokens`` of them. When the next turn would
not fit, the oldest turns leave the model's view until the rest takes half of the room that picture and question leave,
and what is left is computed anew; `Session.turns` still lists them all.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, get_args

from torch import Tensor

from self1e.errors import PromptError, SettingError
from self1e.inference.base_answers import check_base, knows_base
from self1e.inference.base_text import BaseText
from self1e.inference.choosing import Sampling
from self1e.inference.events import Adapter, Done, Event, Mask, Mode, NotThere, Stopped, TextDelta
from self1e.inference.folded import SeenWeights
from self1e.inference.segmenter import EncodedPicture, Exact, Self1E, finish
from self1e.inference.text_cache import TextCache, bytes_per_token
from self1e.processing.processor import IGNORED_LABEL
from self1e.processing.prompts import IMAGE_PLACEHOLDER, SEG_TOKEN, KindChoice, segmentation_question
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
    adapter: Adapter = "on"
    """Whose words they are."""


@dataclass
class _Answer:
    """A turn that is being written."""

    question: str
    prompt: str
    mode: Mode
    adapter: Adapter
    limit: int
    sampling: Sampling
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
            self.adapter,
        )


class Session:
    """A conversation about one picture.

    One turn is written at a time; a second thread that asks meanwhile is told so.

    Args:
        model: From ``self1e.load``.
        picture: What ``Self1E.encode`` takes, or what it returned.
        mode: Of turns that do not name theirs.
        adapter: ``"off"``: turns in words (mode text) are answered by the base model, if they do not say otherwise.
        max_tiles: Most tiles of the picture, see ``Self1E.encode``.
        max_new_tokens: Longest answer.
        max_tokens: Longest conversation in the model's view, picture included; left out, as far as the model's
            positions reach, at most `MAX_TOKENS`.
        temperature: 0 writes greedily; above it tokens are drawn, see `self1e.inference.choosing.Sampling`.
        top_p: With a temperature: draw from the fewest tokens that together have this probability.
        seed: With a temperature: makes every turn's draws the same in every run.
        threshold: Foreground is where the logit is strictly above it.
        exact: How masks are computed, see ``Self1E.segment``. Words always come from the plain modules.
        reject: Say "not there" where a mask scores below the model's calibrated threshold, if it has one.

    Raises:
        SettingError: A setting cannot work.
        CheckpointError: ``adapter="off"``, but the base's tensors are not at hand.
        PictureError: The picture cannot be read.
    """

    def __init__(
        self,
        model: Self1E,
        picture: Any,
        *,
        mode: Mode = "auto",
        adapter: Adapter = "on",
        max_tiles: int | None = None,
        max_new_tokens: int = 256,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        threshold: float = 0.0,
        exact: Exact = "auto",
        reject: bool = True,
    ) -> None:
        check_batch(threshold=threshold, batch_size=None)
        self.model = model
        self.mode: Mode = check_mode(mode)
        self.adapter: Adapter = check_adapter(adapter, model)
        self.sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
        self.max_new_tokens = check_count("max_new_tokens", max_new_tokens)
        self.threshold, self.reject = float(threshold), bool(reject)
        self.exact: Exact = exact
        self.max_tokens = self._checked_max_tokens(max_tokens)
        engine = model._engine(exact)
        self.encoded: EncodedPicture = model._encoded(picture, max_tiles, exact, engine)
        self.turns: tuple[Turn, ...] = ()
        """All of them, oldest first, also those that have left the model's view."""
        self.first_turn = 0
        """Number of the oldest turn in the model's view."""
        self._weights = SeenWeights(model.model)
        self._text = TextCache(model, self.encoded)
        self._base_text: BaseText | None = None  # made when it is first needed
        self._parts: list[list[int]] = []  # of each turn in view, prompt and answer; the last without its end
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
        """Most memory that the conversation holds between turns; the picture's features come on top.

        Twice as much where the base's tensors are at hand: it keeps a text of its own once it is asked.
        """
        return self.bytes_per_token * self.max_tokens * (2 if knows_base(self.model) else 1)

    @property
    def num_tokens(self) -> int:
        """Tokens of the conversation in the model's view, picture included."""
        return sum(map(len, self._parts))

    @property
    def num_bytes(self) -> int:
        """Memory that the conversation holds now, about; never more than `max_bytes`."""
        return self.bytes_per_token * self.num_tokens * (1 if self._base_text is None else 2)

    def _checked_max_tokens(self, max_tokens: int | None) -> int:
        reach = getattr(self.model.model.config.text_config, "max_position_embeddings", None)
        if max_tokens is None:
            return min(MAX_TOKENS, reach or MAX_TOKENS)
        check_count("max_tokens", max_tokens)
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
        adapter: Adapter | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Iterator[Event]:
        """Take one turn; the answer is written while the events are consumed.

        Closing the iterator, or breaking out of the loop over it, ends the turn where it is, and what was written
        stays in the conversation; so does Ctrl-C. Should computing fail, the turn is as if it had not been asked.

        Args:
            text: A question, or with ``mode="segment"`` what to find. Not trusted: words that spell a control token
                stay words.
            mode: For this turn.
            kind: With ``mode="segment"``: ``"phrase"``, ``"sentence"`` or ``"auto"``, see ``Self1E.segment``.
            template: With ``mode="segment"``: a question of your own with ``{text}``.
            adapter: ``"off"``, with ``mode="text"`` only: let the base model answer this turn.
            max_new_tokens: Longest answer of this turn.
            temperature: Of this turn, like what follows; 0 is greedy whatever the session's ``top_p``.
            top_p: See the session.
            seed: See the session.

        Returns:
            `TextDelta` as words come; `Mask` or `NotThere` after each [SEG]; `Done` at the end.

        Raises:
            PromptError: There are no words, or with the picture alone they are too many.
            SettingError: A setting cannot work, another turn is being written, or the model's weights are others than
                when the conversation began.
            CheckpointError: The base is to answer, but its tensors are not at hand.
        """
        chosen = check_mode(self.mode if mode is None else mode)
        whose = self._checked_adapter(adapter, chosen)
        limit = check_count("max_new_tokens", self.max_new_tokens if max_new_tokens is None else max_new_tokens)
        sampling = self._chosen_sampling(temperature, top_p, seed)
        if not isinstance(text, str) or not text.strip():
            raise PromptError(f"text={text!r}; expected words.")
        if template is not None and chosen != "segment":
            raise SettingError(f"template={template!r:.80} with mode={chosen!r}: it is for mode='segment'.")
        prompt = segmentation_question(text, kind, template) if chosen == "segment" else text.strip()
        self._check_room(self._begin(prompt), limit)
        self._check_weights()
        return self._events(_Answer(text.strip(), prompt, chosen, whose, limit, sampling))

    def change(
        self,
        *,
        mode: Mode | None = None,
        adapter: Adapter | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> None:
        """Change settings from the next turn on; they are those of the constructor, and None leaves one as it is.

        Raises:
            SettingError: One of them cannot work; none is changed then.
            CheckpointError: The base is to answer, but its tensors are not at hand.
        """
        sampling = self._chosen_sampling(temperature, top_p, seed)
        whose = self.adapter if adapter is None else check_adapter(adapter, self.model)
        limit = self.max_new_tokens if max_new_tokens is None else check_count("max_new_tokens", max_new_tokens)
        self.mode = self.mode if mode is None else check_mode(mode)
        self.adapter, self.max_new_tokens, self.sampling = whose, limit, sampling

    def cancel(self) -> None:
        """End the turn that is being written, from another thread, before its next token; without one do nothing."""
        self._stop.set()

    def _checked_adapter(self, adapter: Adapter | None, mode: Mode) -> Adapter:
        """Return who writes a turn's words, or say why the base cannot."""
        if mode == "text":
            return check_adapter(self.adapter if adapter is None else adapter, self.model)
        if adapter is not None and check_adapter(adapter) == "off":
            raise SettingError(
                f"adapter='off' with mode={mode!r}: the base model knows no [SEG] and makes no masks; it answers turns "
                "of mode='text'."
            )
        return "on"

    def _chosen_sampling(self, temperature: float | None, top_p: float | None, seed: int | None) -> Sampling:
        given = {"temperature": temperature, "top_p": top_p, "seed": seed}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if temperature == 0 and top_p is None:
            changes["top_p"] = 1.0
        return replace(self.sampling, **changes)

    def _check_weights(self) -> None:
        """Refuse to mix what was computed with other weights, or on another device."""
        if not self._weights.are_the_same():
            raise SettingError(
                "The model's weights have changed or moved since this conversation began, and what is kept of it no "
                "longer fits them. Begin a new session; if they have only moved, session.save and Session.load take "
                "the turns along."
            )

    def _events(self, answer: _Answer) -> Iterator[Event]:
        """Write an answer, keep the turn, say that it is done."""
        if not self._busy.acquire(blocking=False):
            raise SettingError("Another turn is being written: take its events to the end, or close them, first.")
        try:
            self._stop.clear()
            before = self.first_turn, self._parts
            try:
                text = self._text_of(answer.adapter)
                dropped = self._make_room(answer, text)
                prompt = self._next(answer.prompt) if self._parts else self._begin(answer.prompt)
                ids = self._ids + prompt
                seen = text.seen(ids)
                known = text.known(seen)
                computed = len(seen) - known
                yield from self._give(answer, ids) if answer.mode == "segment" else self._write(answer, ids, text)
            except (GeneratorExit, KeyboardInterrupt):
                if answer.ids:
                    self._keep(answer, prompt)
                else:
                    self.first_turn, self._parts = before
                raise
            except BaseException:
                self.first_turn, self._parts = before
                raise
            self._keep(answer, prompt)
        finally:
            self._busy.release()
        yield Done(
            text=answer.text,
            mode=answer.mode,
            decision="segment" if self._seg in answer.ids else "text",
            probability=answer.probability,
            stopped=answer.stopped,
            new_tokens=len(answer.ids),
            prompt_tokens=computed,
            known_tokens=known,
            dropped_turns=dropped,
            adapter=answer.adapter,
        )

    def _text_of(self, adapter: Adapter) -> TextCache:
        """What is kept of the conversation by whoever writes."""
        if adapter == "on":
            return self._text
        if self._base_text is None:
            self._base_text = BaseText(self.model, self.encoded)
        return self._base_text

    def _keep(self, answer: _Answer, prompt: Sequence[int]) -> None:
        self.turns += (answer.turn(),)
        self._parts = [*self._parts, [*prompt, *answer.ids]]

    # ------------------------------------------------------------------ writing

    def _give(self, answer: _Answer, before: list[int]) -> Iterator[Event]:
        """Give the published answer; the model is only asked what it thinks of it."""
        answer.decided = self._probability(self._text.next_logits(before))
        given = self._answer_ids(SEG_TOKEN * self._count + ".")
        told = self._told(answer, before, given, with_mask=True)
        answer.stopped = "end"
        yield from told

    def _write(self, answer: _Answer, before: list[int], text: TextCache) -> Iterator[Event]:
        """Let the model write, or its base."""
        forbidden = [self.model.processor.image_token_id]  # it would be taken for a part of the picture
        forbidden += [self._seg] if answer.mode == "text" else []
        end = self.model.processor.turn_end_id
        seen = text.seen(before)
        draws = answer.sampling.draws(len(self.turns))
        while len(answer.ids) < answer.limit:
            if self._stop.is_set():
                break
            logits = text.next_logits([*seen, *answer.ids])
            probability = self._probability(logits) if answer.adapter == "on" else 0.0
            answer.probabilities.append(probability)
            token = answer.sampling.choose(logits, draws, forbidden)
            if token == end:
                answer.stopped = "end"
                break
            is_seg = token == self._seg
            if is_seg and answer.decided is None:
                answer.decided = probability
            new = [token] * (self._count if is_seg else 1)  # of several [SEG] tokens the first decides
            yield from self._told(answer, before, new, with_mask=is_seg)
        else:
            answer.stopped = "length"
        yield from self._told(answer, before, is_last=True)

    def _told(
        self,
        answer: _Answer,
        before: Sequence[int],
        new: Sequence[int] = (),
        *,
        with_mask: bool = False,
        is_last: bool = False,
    ) -> list[TextDelta | Mask | NotThere]:
        """Add tokens to an answer, and return what there is to tell: words, but no letter before it is whole; a mask.

        All of it is made before any is added or handed out: whoever leaves, or whatever fails, in between leaves no
        [SEG] without its mask.
        """
        ids = [*answer.ids, *new]
        tokenizer: Any = self.model.processor.tokenizer
        words = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        is_whole = is_last or with_mask or not words.endswith("\ufffd")
        more = words[len(answer.text) :] if is_whole else ""
        told: list[TextDelta | Mask | NotThere] = [TextDelta(more)] if more else []
        if with_mask:
            read = self._read(answer, [*before, *ids], answer.text + more)
            answer.results.append(read.segmentation)
            told.append(read)
        answer.ids, answer.text = ids, answer.text + more
        return told

    def _read(self, answer: _Answer, row: list[int], text: str) -> Mask | NotThere:
        """Read the mask of the [SEG] that was just written: one pass over the conversation under the dual mask."""
        logits = self.model.read_rows(self.encoded, [row], exact=self.exact, only_last=True)[0]
        found = self._finish(answer, logits[0], text)
        score = float(found.scores[0])
        least = self.model.no_target_threshold if self.reject else None
        is_there = not bool(found.is_empty[0]) and (least is None or score >= least)
        return Mask(found) if is_there else NotThere(self._finish(answer, None, text), score)

    def _finish(self, answer: _Answer, logits: Tensor | None, text: str) -> Segmentation:
        return finish(self.encoded, [answer.question], [logits], threshold=self.threshold, text=[text])

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

    def _next(self, prompt: str) -> list[int]:
        """What follows an answer, up to the next one."""
        words = prompt.removeprefix(f"{IMAGE_PLACEHOLDER}\n")  # the picture was shown with the first question
        ids = self.model.processor.tokenize_conversation([("x", "x"), (words, None)], num_tiles=0).input_ids
        ends = [index for index, token in enumerate(ids) if token == self.model.processor.turn_end_id]
        return ids[ends[-2] :]  # the end of the answer "x", and what follows it

    def _answer_ids(self, answer: str) -> list[int]:
        """Tokens of an answer of ours."""
        labels = self.model.processor.tokenize_conversation([("x", answer)], num_tiles=0).labels
        return [label for label in labels if label != IGNORED_LABEL][:-1]  # without the end of the turn

    @property
    def _ids(self) -> list[int]:
        """The conversation in view, without the end of the last answer."""
        return [token for part in self._parts for token in part]

    def _first_part(self, turn: Turn) -> list[int]:
        """A turn's part where it is the oldest in view: with the picture."""
        return [*self._begin(turn.prompt), *turn.answer_ids]

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

    def _make_room(self, answer: _Answer, text: TextCache) -> int:
        """Drop the oldest turns if the next one would not fit; say how many."""
        if not self._parts:
            return 0
        lengths = [len(text.seen(part)) for part in self._parts]
        asked = self._needed(self._next(answer.prompt), answer.limit)
        if sum(lengths) + asked <= self.max_tokens:
            return 0
        # To half of the room, not to the brim: what is left is computed anew, which should not happen at every turn.
        most = (self._needed(self._begin(answer.prompt), answer.limit) + self.max_tokens) // 2
        dropped = len(lengths)
        parts: list[list[int]] = []
        for first in range(1, len(lengths)):
            head = self._first_part(self.turns[self.first_turn + first])
            if len(text.seen(head)) + sum(lengths[first + 1 :]) + asked <= most:
                dropped, parts = first, [head, *self._parts[first + 1 :]]
                break
        self.first_turn, self._parts = self.first_turn + dropped, parts
        self._clear()
        return dropped

    # ------------------------------------------------------------------ files

    def save(self, path: str | Path) -> Path:
        """Write the conversation with its masks as JSON, see `self1e.inference.saved_session`.

        Raises:
            OutputError: The file cannot be written; an earlier one is as it was.
        """
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
            CheckpointError: It was another model, or its base answered and is not at hand.
            PictureError: The picture is another one, or cannot be found.
        """
        from self1e.inference.saved_session import load_session

        return load_session(cls, Path(path), model, picture)

    def restore(self, turns: Sequence[Turn], first_turn: int) -> None:
        """Take over the turns of an earlier session; its words are computed anew with the next question."""
        self.turns = tuple(turns)
        self.first_turn = first_turn
        self._parts = [
            [*self._next(turn.prompt), *turn.answer_ids] if number else self._first_part(turn)
            for number, turn in enumerate(self.turns[first_turn:])
        ]
        self._clear()

    def _clear(self) -> None:
        """Give the memory of the kept texts back."""
        self._text.clear()
        if self._base_text is not None:
            self._base_text.clear()


def check_mode(mode: Any) -> Mode:
    """Return the mode, or say that it is none."""
    if mode not in get_args(Mode):
        raise SettingError(f"mode={mode!r} is unknown; choose one of {', '.join(get_args(Mode))}.")
    return mode


def check_adapter(adapter: Any, model: Self1E | None = None) -> Adapter:
    """Return who is to write, or say why not; of a model also whether its base can.

    Raises:
        SettingError: There is no such choice.
        CheckpointError: The base is to write, but its tensors are not at hand.
    """
    if adapter not in get_args(Adapter):
        raise SettingError(f"adapter={adapter!r} is unknown; choose on (as trained) or off (the base's words).")
    if adapter == "off" and model is not None:
        check_base(model)
    return adapter


def check_count(name: str, value: int) -> int:
    """Return a number of tokens, or say that it is none."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SettingError(f"{name}={value!r} must be a whole number of at least 1.")
    return value
