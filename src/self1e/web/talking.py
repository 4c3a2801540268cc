"""A conversation's events to messages: words as they come, masks where they were read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from self1e.errors import SettingError
from self1e.web.finding import shrunk

CHAT_SIDE = 640
"""Longest side of a mask's picture in a conversation."""
MAX_MESSAGES = 60
"""Older ones leave the page; the model's own view has a limit of its own."""


@dataclass(frozen=True, eq=False)
class Message:
    """What one side said: words, or a picture with words for those who do not see it."""

    role: Literal["user", "assistant"]
    text: str
    picture: Image.Image | None = field(default=None, repr=False)


def turn_options(
    mode: Any, adapter: Any, temperature: float, top_p: float, seed: int | None, *, has_base: bool
) -> dict[str, Any]:
    """Return what ``Session.ask`` is told; what has no effect on a turn, and is switched off on the page, is left out.

    Raises:
        SettingError: There is no such choice, or the base is to answer and is not at hand.
    """
    from self1e.inference.session import check_adapter, check_mode

    options = {"mode": check_mode(mode), "temperature": temperature}
    if temperature > 0:
        options |= {"top_p": top_p, "seed": seed}
    if mode == "text":
        options["adapter"] = check_adapter(adapter)
        if adapter == "off" and not has_base:
            raise SettingError("The base model's tensors are not at hand; words come from the model as trained.")
    return options


def answered(events: Iterable[Any]) -> Iterator[tuple[list[Message], str]]:
    """Turn a turn's events into messages, with every event.

    Yields:
        All messages of the answer so far, and when it is complete a line that says how it came about.
    """
    from self1e.inference.session import Done, Mask, NotThere, TextDelta

    messages: list[Message] = []
    is_open = False  # whether words that come go on with the last message
    for event in events:
        told = ""
        if isinstance(event, TextDelta):
            words = messages.pop().text + event.text if is_open else event.text
            messages.append(Message("assistant", words))
            is_open = True
        elif isinstance(event, Mask | NotThere):
            messages.append(_shown(event))
            is_open = False
        elif isinstance(event, Done):
            if not messages:
                messages.append(Message("assistant", "(no words)"))
            told = _summary(event)
        yield list(messages), told


def _shown(event: Any) -> Message:
    result = event.segmentation
    query = result.queries[0]
    if bool(result.is_empty[0]):
        return Message("assistant", f"“{query}”: not there.")
    share = int(result.areas[0]) / (result.size_wh[0] * result.size_wh[1])
    words = f"Mask: {share:.1%} of the picture, score {event.score:.2f}."
    return Message("assistant", words, shrunk(result.overlay(legend=False), CHAT_SIDE))


def _summary(done: Any) -> str:
    chosen = {
        "auto": "The model chose a mask" if done.decision == "segment" else "The model chose words",
        "segment": "You asked for a mask",
        "text": "You asked for words only",
    }[done.mode]
    ended = {"length": ", cut at the limit", "cancelled": ", stopped"}.get(done.stopped, "")
    dropped = f" The {done.dropped_turns} oldest turns left the model's view." if done.dropped_turns else ""
    tokens = f"{done.new_tokens} token{'' if done.new_tokens == 1 else 's'}{ended}"
    if done.adapter == "off":
        return f"{chosen}, from the base model, which knows no [SEG]; {tokens}.{dropped}"
    return f"{chosen}; its own probability of [SEG] was {done.probability:.0%}; {tokens}.{dropped}"
