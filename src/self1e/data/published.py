"""The published data: where each set lies, how training mixes them, what is evaluated (METHOD section 7, Table 8).

On disk, as published::

    <folder>/dataset/{ade20k,coco,cocostuff,llava_dataset,reason_seg,refer_seg,vlpart}
    <folder>/data/{coco,gqa,okvqa,textvqa,vizwiz,vqav2}

Every function takes ``<folder>``, or ``dataset`` itself, beside which ``data`` is then looked for.

Two recipes exist: the paper's, and that of the published code, whose list of referring sets also has refCLEF.
Not kept: the code draws ReasonSeg and LLaVA-Instruct with replacement, whatever the sampler says; here each of their
items comes as often as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from self1e.data.files import Chosen
from self1e.data.reason import ReasonSeg
from self1e.data.referring import Referring
from self1e.data.sample import Sample
from self1e.data.semantic import Ade20k, CocoStuff, PacoLvis, PascalPart
from self1e.data.vqa import VQA_SETS, LlavaInstruct, VqaLines
from self1e.errors import DatasetError, SettingError, did_you_mean

if TYPE_CHECKING:
    from self1e.data.epoch import Epoch

BATCH_SIZE = 5
"""Pictures in a micro-batch, as published."""
QUERIES = 3
"""Most mask queries per picture, as published."""
MOST_PICTURES = 30_000
"""Of COCO-Stuff and of PACO-LVIS."""
MOST_LINES = 100_000
"""Of each set of questions with short answers."""

SEMANTIC = ("ade20k", "cocostuff", "pascal_part", "paco_lvis")
CLASS_MAPS = ("ade20k", "cocostuff")
"""Of these, those whose pictures are labelled whole: what has no label is not there."""
REFERRING: dict[str, tuple[str, ...]] = {
    "paper": ("refcoco", "refcoco+", "refcocog"),
    "code": ("refclef", "refcoco", "refcoco+", "refcocog"),
    "gres": ("refcoco", "refcoco+", "refcocog", "grefcoco"),
}
"""Referring sets, by whose word it is; ``gres`` is ours: the paper's and gRefCOCO, with several targets and none."""
REASONING = ("reasonseg",)
INSTRUCTIONS = ("llava",)

TABLE_8 = {
    "vqav2": 100_000,
    "okvqa": 9_000,
    "textvqa": 35_000,
    "vizwiz": 20_000,
    "gqa": 100_000,
    "llava": 157_000,
    "refcoco": 17_000,
    "refcoco+": 17_000,
    "refcocog": 22_000,
    "ade20k": 20_000,
    "cocostuff": 30_000,
    "pascal_part": 4_000,
    "paco_lvis": 30_000,
    "reasonseg": 239,
}
"""The paper's sample counts per set, before rates; all but ReasonSeg's in thousands."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How many copies of each kind of set an epoch holds; the five sets with short answers always come once."""

    semantic: int = 1
    referring: int = 1
    reasoning: int = 1
    instructions: int = 1


RATES = {"plain": Rates(), "seg": Rates(semantic=6, referring=20, reasoning=6)}
"""``--sample_rates`` 1,1,1,1 of SELF1E, and 6,20,6,1 of SELF1E-SEG."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the two folders are."""

    root: Path
    """``dataset``: pictures with masks, and LLaVA-Instruct."""
    data: Path
    """``data``: the sets with short answers."""


def find_layout(folder: str | Path) -> Layout:
    """Find both folders from the one that holds them, or from ``dataset`` itself.

    Raises:
        DatasetError: The folder does not exist.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise DatasetError(f"No folder {folder}; expected the one that holds dataset/ and data/, or dataset/ itself.")
    root = folder / "dataset" if (folder / "dataset").is_dir() else folder
    return Layout(root=root, data=root.parent / "data")


_TRAINING: dict[str, Callable[[Layout, int], Sequence[Sample]]] = {
    "ade20k": lambda at, seed: Ade20k(at.root),
    "cocostuff": lambda at, seed: Chosen(CocoStuff(at.root), MOST_PICTURES, seed=seed),
    "pascal_part": lambda at, seed: PascalPart(at.root),
    "paco_lvis": lambda at, seed: Chosen(PacoLvis(at.root), MOST_PICTURES, seed=seed),
    "refclef": lambda at, seed: Referring(at.root, "refclef"),
    "refcoco": lambda at, seed: Referring(at.root, "refcoco"),
    "refcoco+": lambda at, seed: Referring(at.root, "refcoco+"),
    "refcocog": lambda at, seed: Referring(at.root, "refcocog"),
    "grefcoco": lambda at, seed: Referring(at.root, "grefcoco"),
    "reasonseg": lambda at, seed: ReasonSeg(at.root),
    "llava": lambda at, seed: LlavaInstruct(at.root),
    **{name: (lambda at, seed, name=name: Chosen(VqaLines(at.data, name), MOST_LINES, seed=seed)) for name in VQA_SETS},
}

TRAINING_SETS = tuple(_TRAINING)
"""Every set that training can read; gRefCOCO is in no published mixture."""


def open_training_set(folder: str | Path, name: str, *, seed: int = 0) -> Sequence[Sample]:
    """Open a set as training reads it: its training split, of the large ones as many samples as published.

    Args:
        folder: Holds ``dataset/`` and ``data/``, or is ``dataset/``.
        name: One of `TRAINING_SETS`.
        seed: Chooses the samples of the large sets.

    Raises:
        DatasetError: There is no such set, or its files are missing.
    """
    if name not in _TRAINING:
        raise DatasetError(
            f"Unknown data set {name!r}.{did_you_mean(name, _TRAINING)} Known: {', '.join(TRAINING_SETS)}."
        )
    return _TRAINING[name](find_layout(folder), seed)


def published_sets(rates: Rates = RATES["plain"], referring: str = "paper") -> dict[str, int]:
    """List the sets of a mixture in their order, each with its copies.

    Args:
        rates: See `RATES`.
        referring: ``paper``, ``code`` or ``gres``; see `REFERRING`.
    """
    if referring not in REFERRING:
        raise SettingError(f"referring={referring!r} is unknown; choose one of {', '.join(REFERRING)}.")
    groups = (
        (SEMANTIC, rates.semantic),
        (REFERRING[referring], rates.referring),
        (REASONING, rates.reasoning),
        (INSTRUCTIONS, rates.instructions),
        (tuple(VQA_SETS), 1),
    )
    return {name: copies for names, copies in groups for name in names}


def published_mixture(
    folder: str | Path,
    *,
    rates: Rates = RATES["plain"],
    referring: str = "paper",
    only: Collection[str] | None = None,
    no_target: float = 0.0,
    batch_size: int = BATCH_SIZE,
    seed: int = 42,
    epoch: int = 0,
) -> Epoch:
    """Mix the data as published: one epoch of every set, at most three queries per picture, the training prompts.

    Args:
        folder: Holds ``dataset/`` and ``data/``, or is ``dataset/``.
        rates: Copies of each kind of set; see `RATES`.
        referring: ``paper``, ``code`` or ``gres``; see `REFERRING`. gRefCOCO's phrases that mean nothing in their
            picture are taught as empty masks.
        no_target: Share of ADE20K's and COCO-Stuff's queries that ask for a class that is surely not in the picture
            (`surely_absent`), and are taught as empty masks; published: none. No other set allows to know that.
        only: Of the sets, those that are at hand; None for all.
        batch_size: Pictures in a micro-batch; the last of each has a mask, if any set has.
        seed: Of the order, of what is chosen and of the words; published: 42.
        epoch: Another epoch is another order.

    Raises:
        DatasetError: Files are missing; the message lists every set that lacks some.
    """
    from self1e.data.epoch import Epoch
    from self1e.data.mixture import Part

    sets = published_sets(rates, referring)
    if not 0 <= no_target <= 1:
        raise SettingError(f"no_target={no_target} is a share: expected 0 to 1.")
    for name in only or ():
        if name not in sets:
            raise DatasetError(f"only names {name!r}.{did_you_mean(name, sets)} The mixture has: {', '.join(sets)}.")
    parts, problems = {}, []
    for name, copies in sets.items():
        if only is not None and name not in only:
            continue
        try:
            samples = open_training_set(folder, name, seed=seed)
        except DatasetError as error:
            problems.append(f"- {name}: {error}")
        else:
            absent = no_target if name in CLASS_MAPS else 0.0
            parts[name] = Part(samples=samples, weight=copies, lower=True, absent=absent)
    if problems:
        raise DatasetError(
            "\n".join(
                [f"{len(problems)} data sets of the mixture are not there (name the others in `only`):", *problems]
            )
        )
    with_masks = [name for name in parts if name not in {*INSTRUCTIONS, *VQA_SETS}]
    return Epoch(
        parts,
        with_masks=with_masks,
        batch_size=batch_size,
        queries=QUERIES,
        seed=seed,
        epoch=epoch,
        validation_prompt=0.0,
    )


def differences_from_table_8(lengths: Mapping[str, int]) -> list[str]:
    """Compare sample counts, before rates, with the paper's.

    Args:
        lengths: Samples by the set's name; sets that the table lacks are passed over.

    Returns:
        One sentence per set that is off by a thousand or more, which is the table's precision; by one of ReasonSeg.
    """
    problems = []
    for name, found in lengths.items():
        expected = TABLE_8.get(name, found)
        if abs(found - expected) >= (1000 if expected >= 1000 else 1):
            problems.append(
                f"{name} has {found} samples, Table 8 says {expected}: it is incomplete or another edition."
            )
    return problems


BENCHMARKS = (
    "reasonseg/val",
    "reasonseg/test",
    "refcoco/val",
    "refcoco/testA",
    "refcoco/testB",
    "refcoco+/val",
    "refcoco+/testA",
    "refcoco+/testB",
    "refcocog/val",
    "refcocog/test",
    "grefcoco/val",
    "grefcoco/testA",
    "grefcoco/testB",
)
"""What is published to be evaluated, in that order (METHOD section 7.2)."""


def open_benchmark(folder: str | Path, name: str, *, bug_compat: bool = False) -> Sequence[Sample]:
    """Open a split for evaluation: every query that the published protocol asks, and no other.

    Args:
        folder: Holds ``dataset/``, or is it.
        name: One of `BENCHMARKS`.
        bug_compat: See `Referring`; refCOCO, refCOCO+ and refCOCOg then have sums of polygons, and gRefCOCO has the
            crowds that its official evaluation leaves out.

    Raises:
        DatasetError: There is no such benchmark, or its files are missing.
    """
    if name not in BENCHMARKS:
        raise DatasetError(
            f"Unknown benchmark {name!r}.{did_you_mean(name, BENCHMARKS)} Known: {', '.join(BENCHMARKS)}."
        )
    root = find_layout(folder).root
    which, split = name.split("/")
    if which == "reasonseg":
        return ReasonSeg(root, split)
    return Referring(root, which, split, bug_compat=bug_compat, crowds=bug_compat or which != "grefcoco")
