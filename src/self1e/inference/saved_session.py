"""A conversation as a file: JSON, masks as run-length codes, the picture by its path and its pixels' hash.

::

    {"format": "self1e-session", "version": 1,
     "model": {"name": "nano", "weights": "5b0c..."},
     "picture": {"source": "street.jpg", "path": "/home/me/street.jpg", "sha256": "91f3...", "tiles": [1, 1]},
     "settings": {"mode": "auto", "max_new_tokens": 256, ...},
     "first_turn": 0,
     "turns": [{"question": "the car", "mode": "segment", "answer_ids": [1400, 15], "text": "[SEG].", ...,
                "masks": [{"query": "the car", "score": 0.91, "text": "[SEG].", "rle": {"size": [480, 640], ...}}]}]}

Tokens of answers are kept as they were written: encoding their words again could give others. Neither pixels nor
weights are in the file; both are compared when it is read. Keys and values are computed anew.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import numpy as np

from self1e.errors import CheckpointError, OutputError, PictureError, SettingError
from self1e.files import atomic_write
from self1e.inference.events import Adapter, Stopped
from self1e.inference.folder import fingerprint
from self1e.inference.segmenter import EncodedPicture, Self1E
from self1e.structures import Segmentation, checked_runs

if TYPE_CHECKING:
    from self1e.inference.session import Session, Turn

    SomeSession = TypeVar("SomeSession", bound=Session)

FORMAT, VERSION = "self1e-session", 1
_NEWER = {"adapter": "on", "temperature": 0.0, "top_p": 1.0, "seed": None}
"""Settings that earlier files of this version lack, and what held then."""
_SETTINGS = ("mode", "max_new_tokens", "max_tokens", "threshold", "exact", "reject")


def save_session(session: Session, path: Path) -> Path:
    """Write a session; an earlier file of that name is replaced whole or not at all."""
    encoded = session.encoded
    source = Path(encoded.source)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": {"name": session.model.name, "weights": fingerprint(session.model)},
        "picture": {
            "source": encoded.source,
            "path": str(source.resolve()) if source.is_file() else None,
            "sha256": picture_hash(encoded),
            "tiles": list(encoded.grid.shape_hw),
        },
        "settings": {name: getattr(session, name) for name in (*_SETTINGS, "adapter")} | asdict(session.sampling),
        "first_turn": session.first_turn,
        "turns": [_turn_entry(turn) for turn in session.turns],
    }
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    try:
        return atomic_write(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}.") from error


def load_session(cls: type[SomeSession], path: Path, model: Self1E, picture: Any = None) -> SomeSession:
    """Read what `save_session` wrote; see ``Session.load``."""
    content = _read(path)
    try:
        weights, name = content["model"]["weights"], content["model"]["name"]
        if weights != fingerprint(model):
            raise CheckpointError(
                f"{path}: was a conversation with {name} (weights {weights}), but this is {model.name} "
                f"(weights {fingerprint(model)}); load the model that it was, or begin a new session."
            )
        settings = _settings(content["settings"])
        encoded = _encode(path, content["picture"], model, settings["exact"], picture)
        encoded = replace(encoded, source=str(content["picture"]["source"]))  # new masks are called like the old ones
        session = cls(model, encoded, **settings)
        turns = [_turn(entry, encoded, model) for entry in _listed(content["turns"])]
        first = content["first_turn"]
        if not isinstance(first, int) or not 0 <= first <= len(turns):
            raise SettingError(f"first_turn is {first!r}, expected 0 to {len(turns)}.")
    except (CheckpointError, PictureError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        told = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise SettingError(f"{path}: is damaged: {told} Save the session again.") from error
    session.restore(turns, first)
    return session


def picture_hash(encoded: EncodedPicture) -> str:
    """SHA-256 of the upright picture's size and RGB pixels: the same for a file, an array and a PIL picture."""
    width, height = encoded.size_wh
    return hashlib.sha256(f"{width}x{height} ".encode() + encoded.image.tobytes()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise SettingError(f"{path}: cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # neither JSON nor UTF-8
        raise SettingError(f"{path}: is not JSON ({error}); expected a file that session.save wrote.") from error
    found = (content.get("format"), content.get("version")) if isinstance(content, dict) else None
    if found != (FORMAT, VERSION):
        raise SettingError(f"{path}: found format and version {found}, expected {(FORMAT, VERSION)}.")
    return content


def _settings(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the session's settings; what they are worth is checked when it begins."""
    settings = _NEWER | {name: entry[name] for name in (*_SETTINGS, *_NEWER) if name in entry or name in _SETTINGS}
    if not isinstance(settings["reject"], bool):
        raise SettingError(f"settings.reject is {settings['reject']!r}, expected true or false.")
    return settings


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise SettingError(f"found {value!r:.80} where a list is expected.")
    return value


def _encode(path: Path, entry: dict[str, Any], model: Self1E, exact: Any, picture: Any) -> EncodedPicture:
    """Encode the picture that the conversation is about, or say that it is another one."""
    if picture is None and entry["path"] is None:
        raise PictureError(f"{path}: the picture came from no file; pass it as picture=.")
    given = Path(entry["path"]) if picture is None else picture
    if isinstance(given, Path) and not given.is_file():
        raise PictureError(f"{path}: the picture is no longer at {given}; pass it as picture=.")
    if isinstance(given, EncodedPicture):
        encoded = given
    else:
        encoded = model.encode(given, max_tiles=entry["tiles"][0] * entry["tiles"][1], exact=exact)
    if picture_hash(encoded) != entry["sha256"]:
        raise PictureError(f"{path}: {encoded.source} is not the picture of this conversation: its pixels differ.")
    if list(encoded.grid.shape_hw) != entry["tiles"]:
        raise PictureError(
            f"{path}: the picture was seen as {entry['tiles']} rows and columns of tiles, now as "
            f"{list(encoded.grid.shape_hw)}; pass the picture itself, or encode it with as many tiles."
        )
    return encoded


def _turn_entry(turn: Turn) -> dict[str, Any]:
    return {
        "question": turn.question,
        "prompt": turn.prompt,
        "mode": turn.mode,
        "answer_ids": list(turn.answer_ids),
        "text": turn.text,
        "probability": turn.probability,
        "stopped": turn.stopped,
        "adapter": turn.adapter,
        "masks": [
            {
                "query": result.queries[0],
                "score": float(result.scores[0]),
                "text": result.text[0],
                "rle": result.to_coco_rle()[0],
            }
            for result in turn.results
        ],
    }


def _turn(entry: dict[str, Any], encoded: EncodedPicture, model: Self1E) -> Turn:
    from self1e.inference.session import Turn, check_mode

    question = _words(entry["question"])
    ids = _ids(entry, model)
    masks = _listed(entry["masks"])
    count = model.model.config.num_seg_tokens
    if ids.count(model.processor.seg_token_id) != count * len(masks):
        raise SettingError(
            f"the answer to {question!r:.80} has {len(masks)} masks for {ids.count(model.processor.seg_token_id)} [SEG]"
            f", expected one for {'each' if count == 1 else f'every {count} of them'}."
        )
    probability = float(entry["probability"])
    if not math.isfinite(probability) or not 0 <= probability <= 1:
        raise SettingError(f"probability is {probability}, expected 0 to 1.")
    return Turn(
        question=question,
        prompt=_words(entry["prompt"]),
        mode=check_mode(entry["mode"]),
        answer_ids=ids,
        text=_text(entry["text"]),
        probability=probability,
        stopped=_one_of(get_args(Stopped), "stopped", entry["stopped"]),
        results=tuple(_result(mask, encoded) for mask in masks),
        adapter=_one_of(get_args(Adapter), "adapter", entry.get("adapter", "on")),
    )


def _ids(entry: dict[str, Any], model: Self1E) -> tuple[int, ...]:
    """Return an answer's tokens, which an answer must be able to have."""
    ids = tuple(_listed(entry["answer_ids"]))
    vocabulary = model.model.config.text_config.vocab_size
    special = (model.processor.image_token_id, model.processor.turn_end_id)
    if not all(type(token) is int and 0 <= token < vocabulary and token not in special for token in ids):
        raise SettingError(f"the answer to {entry['question']!r:.80} holds tokens that no answer can have.")
    return ids


def _result(entry: dict[str, Any], encoded: EncodedPicture) -> Segmentation:
    """Return a mask whose code has been looked through: a damaged one would fail later, where nobody knows why."""
    result = Segmentation(
        queries=(_words(entry["query"]),),
        rles=(entry["rle"],),
        scores=np.array([entry["score"]], dtype=np.float32),
        size_wh=encoded.size_wh,
        image=encoded.image,
        text=(_text(entry["text"]),),
        source=encoded.source,
    )
    checked_runs(result.rles[0])
    return result


def _one_of(known: tuple[Any, ...], name: str, value: Any) -> Any:
    if value not in known:
        raise SettingError(f"{name} is {value!r:.80}, expected one of {', '.join(known)}.")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise SettingError(f"found {value!r:.80} where text is expected.")
    return value


def _words(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise SettingError(f"found {value!r:.80} where words are expected.")
    return value
