"""Share of padding in micro-batches of the published mixture, in its own order and bucketed: no picture is read.

An `Epoch` of as many samples per set as Table 8 says, with the published sampling. Only texts and sizes are simulated,
by index and seeded, from texts that are at hand:

* referring sets: 3 to 9 of the fixture's sentences per picture;
* ADE20K, COCO-Stuff: 1 to 8 class names; PASCAL-Part, PACO-LVIS: 2 to 8 names out of COCO's, half with a part;
* ReasonSeg: up to 4 of the real texts;
* VQA: real questions of GQA, TextVQA, VizWiz; VQAv2 and OK-VQA take GQA's. Answers are one to three words;
* LLaVA-Instruct: ``fixture`` takes the fixture's conversations, which are short; ``real`` draws as the real set is
  made, 58 : 23 : 77 conversations of 2 to 5 turns, descriptions and reasoning, from 30 real answers of each kind.

Tokens of a text are counted by the golden tokenizer, whose 151 merges make texts twice as long as they are (rows are
cut at 512 as published), or estimated for the real Qwen2 tokenizer, which is not at hand: one token per punctuation
mark and per 8 letters of a word or part of it, and 45 of the template. Pictures have sizes of COCO's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from self1e.data.class_names import ADE20K, COCO_STUFF
from self1e.data.epoch import Epoch
from self1e.data.mixture import Item, Part
from self1e.data.published import BATCH_SIZE, INSTRUCTIONS, QUERIES, RATES, TABLE_8, published_sets
from self1e.data.referring import Referring
from self1e.data.sample import Outline, Question, Sample, Target
from self1e.data.semantic import part_names
from self1e.data.vqa import VQA_SETS, LlavaInstruct, VqaSet, read_turns
from self1e.processing.image import choose_grid
from self1e.training.batching import bucketed, padding_share

Turns = list[tuple[str, str]]
Conversations = Literal["fixture", "real"]
RowTokens = Callable[[Sequence[tuple[str, str]], int], int]
"""Turns and tiles to tokens."""

SIZES_WH = ((640, 480), (640, 427), (480, 640), (427, 640), (640, 426), (500, 375), (612, 612), (640, 360), (1024, 683))
_MASK = np.ones((1, 1), bool)
_PARTS = ("handle", "leg", "body", "wheel", "head", "ear", "neck", "rim", "bottom")


class Texts:
    """Texts that are at hand, by what they are for.

    Args:
        layout: Holds ``dataset/``, as published: the fixture.
        conformance: Pieces of official files.
    """

    def __init__(self, layout: Path, conformance: Path) -> None:
        root = layout / "dataset"
        refs = {name: Referring(root, name) for name in ("refcoco", "refcoco+", "refcocog")}
        self.sentences = {
            name: [text for asked in set_.references.values() for ref in asked for text in ref.sentences]
            for name, set_ in refs.items()
        }
        reasons = [*conformance.glob("reasonseg_real_noimages/*/*_o.json")]
        reasons += root.glob("reason_seg/ReasonSeg/*/*.json")
        self.reasons = [
            str(text) for path in reasons if isinstance(note := _json(path), dict) for text in note.get("text", ())
        ]
        self.questions = {
            name: [_first_line(line["text"]) for line in _lines(conformance, f"llava_eval/{name}/llava_*.jsonl")]
            for name in ("gqa", "textvqa", "vizwiz")
        }
        llava = LlavaInstruct(root)
        self.fixture = [read_turns(record["conversations"]) for record in llava.records]
        answers = _lines(conformance, "llava_instruct/coco2014_val_gpt4_qa_30x3.jsonl")
        self.real: dict[str, Turns] = {
            kind: [(line["instruction"], line["output"]) for line in answers if line["type"] == kind]
            for kind in ("conv", "detail", "complex")
        }

    def turns(self, rng: np.random.Generator, conversations: Conversations) -> Turns:
        """Draw one LLaVA conversation."""
        if conversations == "fixture":
            return self.fixture[int(rng.integers(len(self.fixture)))]
        kind = str(rng.choice(["conv", "detail", "complex"], p=np.array([58, 23, 77]) / 158))
        known = self.real[kind]
        count = int(rng.integers(2, 6)) if kind == "conv" else 1
        return [known[int(i)] for i in rng.permutation(len(known))[:count]]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except UnicodeDecodeError:
        return json.loads(path.read_text("cp1252"))


def _lines(folder: Path, pattern: str) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob(pattern)) for line in path.read_text("utf-8").splitlines()]


def _first_line(text: str) -> str:
    return text.split("\n")[0]


class Simulated(Sequence[Sample]):
    """Sample ``i`` of a set that is not there: its texts, and a picture of one pixel with the size written beside.

    Args:
        name: Of a published set.
        texts: What to draw from.
        conversations: Of LLaVA-Instruct.
    """

    def __init__(self, name: str, texts: Texts, conversations: Conversations) -> None:
        self.name, self.texts, self.conversations = name, texts, conversations
        self._seed = sorted(TABLE_8).index(name)
        self._image = Image.new("RGB", (1, 1))

    def __len__(self) -> int:
        return TABLE_8[self.name]

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        rng = np.random.default_rng((self._seed, index))
        source = f"{self.name}/{index}"
        if self.name in (*INSTRUCTIONS, *VQA_SETS):
            *before, (text, answer) = self._turns(rng)
            asked = Question(text=text, answer=answer, before=tuple(before))
            return Sample(image=self._image, questions=(asked,), source=source)
        kind = "sentence" if self.name == "reasonseg" else "phrase"
        targets = tuple(Target(text=text, mask=_MASK, kind=kind) for text in self._phrases(rng))
        return Sample(image=self._image, targets=targets, source=source)

    def peek(self, index: int, *, with_size: bool = False) -> Outline:
        """Say what the real reader would know without decoding anything."""
        sample = self[index]
        size_wh = simulated_size(self.name, index)
        if sample.questions:
            (asked,) = sample.questions
            turns = (*asked.before, (asked.text, asked.answer))
            return Outline(letters=sum(len(q) + len(a) for q, a in turns), has_mask=False, size_wh=size_wh)
        letters = {"ade20k": 10, "cocostuff": 10, "reasonseg": 90}
        known = letters.get(self.name, max(len(target.text) for target in sample.targets))
        return Outline(letters=known, has_mask=True, size_wh=size_wh)

    def _turns(self, rng: np.random.Generator) -> Turns:
        if self.name in INSTRUCTIONS:
            return self.texts.turns(rng, self.conversations)
        known = self.texts.questions.get(self.name, self.texts.questions["gqa"])
        found: VqaSet = VQA_SETS[self.name]
        question = f"{known[int(rng.integers(len(known)))]} {found.prompt}"
        return [(question, " ".join(str(rng.choice(ADE20K)) for _ in range(int(rng.integers(1, 4)))))]

    def _phrases(self, rng: np.random.Generator) -> list[str]:
        if self.name == "reasonseg":
            known = self.texts.reasons
            return [known[int(i)] for i in rng.permutation(len(known))[:4]]
        if self.name in self.texts.sentences:
            known = self.texts.sentences[self.name]
            return [known[int(i)] for i in rng.integers(len(known), size=int(rng.integers(3, 10)))]
        if self.name in ("ade20k", "cocostuff"):
            names = ADE20K if self.name == "ade20k" else COCO_STUFF
            return [str(name) for name in rng.choice(names, int(rng.integers(1, 9)), replace=False)]
        things = rng.choice(COCO_STUFF[:91], int(rng.integers(2, 9)))
        parts = [f"{thing}:{rng.choice(_PARTS)}" if rng.random() < 0.5 else str(thing) for thing in things]
        return [str(rng.choice(part_names(part))) for part in parts]


def simulated_size(name: str, index: int) -> tuple[int, int]:
    """Draw width and height of the picture that would be there."""
    return SIZES_WH[int(np.random.default_rng((sorted(TABLE_8).index(name), index, 1)).integers(len(SIZES_WH)))]


def simulated_epoch(
    texts: Texts, *, conversations: Conversations = "real", rates: str = "plain", seed: int = 42
) -> Epoch:
    """Make an epoch with Table 8's counts."""
    sets = published_sets(RATES[rates])
    parts = {
        name: Part(samples=Simulated(name, texts, conversations), weight=copies, lower=True)
        for name, copies in sets.items()
    }
    with_masks = [name for name in parts if name not in {*INSTRUCTIONS, *VQA_SETS}]
    return Epoch(parts, with_masks=with_masks, batch_size=BATCH_SIZE, queries=QUERIES, seed=seed, validation_prompt=0.0)


def estimated_tokens(turns: Sequence[tuple[str, str]], tiles: int, max_length: int | None = 512) -> int:
    """Estimate what Qwen2's tokenizer makes of a row."""
    text = "\n".join(f"{question}\n{answer}" for question, answer in turns).replace("<image>", "")
    words = re.findall(r"\w+|[^\w\s]", text.replace("[SEG]", "!"))
    count = 256 * tiles + 45 + 8 * (len(turns) - 1) + sum(1 + (len(word) - 1) // 8 for word in words)
    return count if max_length is None else min(count, max_length)


def golden_tokens(tokenizer: Path) -> RowTokens:
    """Count with the golden tokenizer."""
    from self1e.processing.processor import Self1EProcessor

    processor = Self1EProcessor.from_base(tokenizer)

    def count(turns: Sequence[tuple[str, str]], tiles: int) -> int:
        most = 512 if tiles == 1 else None
        return len(processor.tokenize_conversation(list(turns), num_tiles=tiles, max_length=most).input_ids)

    return count


def measure(epoch: Epoch, tokens: RowTokens, *, windows: int, window: int = 32, max_tiles: int = 1) -> dict[str, float]:
    """Compare both orders on some windows, evenly spread over the epoch.

    Returns:
        Padding's share of tokens: ``published`` and ``bucketed``; ``rows``, how many that is from.
    """
    ordered = bucketed(epoch, window=window, max_tiles=max_tiles)
    items = window * epoch.batch_size
    known: dict[int, list[int]] = {}
    starts = np.linspace(0, len(epoch) // items - 1, windows).astype(int) * items

    def rows(index: int) -> list[int]:
        if index not in known:
            known[index] = list(_row_tokens(epoch[index], tokens, max_tiles))
        return known[index]

    def batches(order: Callable[[int], int]) -> Iterator[list[int]]:
        for start in starts.tolist():
            for first in range(start, start + items, epoch.batch_size):
                yield [count for index in range(first, first + epoch.batch_size) for count in rows(order(index))]

    shares = {
        "published": padding_share(batches(lambda index: index)),
        "bucketed": padding_share(batches(ordered.original)),
    }
    return shares | {"rows": float(sum(map(len, known.values())))}


def _row_tokens(item: Item, tokens: RowTokens, max_tiles: int) -> Iterator[int]:
    name, number = item.source.split("/")
    rows, columns = choose_grid(simulated_size(name, int(number)), 448, max_tiles)
    for row in item.rows:
        yield tokens(row.turns, rows * columns)
