"""The paper's tables: which benchmarks fill them, and what was published (SELF1E, arXiv:2603.19026).

A published number is quoted with its table and never recomputed. What stands beside it is comparable only as far as the
protocol is the same; every table says so in a line of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from self1e.errors import SettingError, did_you_mean


@dataclass(frozen=True)
class Column:
    """One number of a table."""

    label: str
    parts: tuple[str, ...]
    """Benchmarks whose figures are averaged; usually one."""
    figure: str
    """As the metric calls it, e.g. ``ciou``."""
    subset: str = ""
    """A sub-split of the benchmark."""


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One table of the paper."""

    number: int
    title: str
    columns: tuple[Column, ...]
    published: dict[str, tuple[float | None, ...]]
    """Values per method, in the columns' order; percent, or points."""
    protocol: str
    """How the published numbers were measured, as far as that is known."""
    is_ablation: bool = False
    """It varies the method on benchmarks that another table has: a terminal leaves it to the files."""

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """Names of all benchmarks that it needs."""
        return tuple(dict.fromkeys(part for column in self.columns for part in column.parts))


_RES = {
    "RefCOCO": ("refcoco/val", "refcoco/testA", "refcoco/testB"),
    "RefCOCO+": ("refcoco+/val", "refcoco+/testA", "refcoco+/testB"),
    "RefCOCOg": ("refcocog/val", "refcocog/test"),
}


def _res_columns(*wanted: str) -> tuple[Column, ...]:
    return tuple(
        Column(f"{title} {name.split('/')[1]}", (name,), "ciou") for title in wanted or _RES for name in _RES[title]
    )


_RES_MEANS = tuple(Column(f"{title} mean", names, "ciou") for title, names in _RES.items())
_RES_PROTOCOL = "cIoU, one sentence at a time, [SEG] given (`tf`, `res.sentence`)"

TABLES = (
    PaperTable(
        number=1,
        title="Referring expression segmentation",
        columns=_res_columns(),
        protocol=_RES_PROTOCOL,
        published={
            "LISA-7B (ft)": (74.9, 79.1, 72.3, 65.1, 70.8, 58.1, 67.9, 70.6),
            "GLaMM": (79.5, 83.2, 76.9, 72.6, 78.7, 64.6, 74.2, 74.9),
            "HiMTok-8B (ft)": (85.0, 85.2, 83.5, 79.7, 82.7, 76.0, 80.0, 80.6),
            "UFO-8B (ft)": (81.0, 82.6, 78.6, 77.1, 80.4, 72.6, 76.7, 77.3),
            "SELF1E-2B": (80.2, 82.1, 77.6, 74.6, 79.1, 69.2, 77.0, 77.8),
            "SELF1E-SEG-2B": (84.3, 85.4, 82.3, 78.9, 83.5, 75.1, 80.4, 81.0),
            "SELF1E-8B": (82.5, 83.8, 80.1, 77.6, 81.6, 73.7, 79.1, 79.8),
            "SELF1E-SEG-8B": (84.7, 86.2, 83.4, 80.2, 84.2, 77.0, 82.1, 82.8),
        },
    ),
    PaperTable(
        number=2,
        title="Generalized referring expression segmentation",
        columns=tuple(
            Column(f"{split} {label}", (f"grefcoco/{split}",), figure)
            for split in ("val", "testA", "testB")
            for label, figure in (("cIoU", "ciou"), ("gIoU", "giou"))
        ),
        protocol="[SEG] given; absent only if the mask has no pixel (`tf`, `gres.mask_empty`); no N-acc or T-acc",
        published={
            "LISA-7B": (38.7, 32.2, 52.6, 48.5, 44.8, 39.7),
            "PSALM (zero-shot)": (42.0, 43.3, 52.4, 54.5, 50.6, 52.5),
            "HiMTok-8B": (66.8, 68.7, 68.6, 67.6, 65.8, 64.1),
            "SELF1E-2B (zero-shot)": (41.4, 35.2, 55.6, 51.4, 47.0, 42.7),
            "SELF1E-8B (zero-shot)": (44.4, 37.5, 57.5, 53.2, 50.9, 45.6),
        },
    ),
    PaperTable(
        number=3,
        title="Reasoning segmentation",
        columns=(
            *(
                Column(f"{split} {label}", (f"reasonseg/{split}",), figure)
                for split in ("val", "test")
                for label, figure in (("gIoU", "giou"), ("cIoU", "ciou"))
            ),
            *(
                Column(f"test {which} {label}", ("reasonseg/test",), figure, which)
                for which in ("short", "long")
                for label, figure in (("gIoU", "giou"), ("cIoU", "ciou"))
            ),
        ),
        protocol="the first text of a picture, [SEG] given (`tf`, `reason.first`); short and long are not published",
        published={
            "LISA-7B (ft)": (52.9, 54.0, 47.3, 48.4),
            "HiMTok-8B": (60.7, 67.0, 60.8, 66.2),
            "SELF1E-2B": (59.4, 68.8, 57.3, 57.6),
            "SELF1E-8B": (65.9, 69.7, 65.7, 67.0),
        },
    ),
    PaperTable(
        number=4,
        title="Open-vocabulary semantic segmentation",
        columns=(
            Column("A150", ("ade20k-150/val",), "miou_cls"),
            Column("PC59", ("pc-59/val",), "miou_cls"),
            Column("PC459", ("pc-459/val",), "miou_cls"),
            Column("PAS20", ("pas-20/val",), "miou_cls"),
        ),
        protocol="mIoU over classes, one query per class; which of the two averages was published is not known",
        published={
            "PSALM": (18.2, 48.5, 10.2, 81.3),
            "HiMTok-8B": (25.0, 43.9, None, 82.0),
            "HyperSeg": (22.3, 64.6, None, 92.1),
            "SELF1E-2B": (50.2, 64.6, 42.4, 89.9),
            "SELF1E-2B* (without their training data)": (24.0, 36.9, 18.9, 44.8),
        },
    ),
    PaperTable(
        number=5,
        is_ablation=True,
        title="Ablation of RFR and pixel-unshuffle",
        columns=_res_columns("RefCOCO"),
        protocol=_RES_PROTOCOL,
        published={
            "none": (76.6, 78.3, 73.6),
            "F_V1^HQ": (78.7, 81.1, 75.2),
            "F_V1^HQ + RFR": (79.0, 81.3, 76.3),
            "pixel-unshuffle": (78.5, 80.3, 75.1),
            "F_V1^HQ + RFR + pixel-unshuffle": (79.8, 82.0, 77.1),
        },
    ),
    PaperTable(
        number=6,
        is_ablation=True,
        title="Ablation of RFA",
        columns=_RES_MEANS,
        protocol=_RES_PROTOCOL + "; mean of the splits",
        published={
            "baseline": (78.9, 73.5, 76.3),
            "part unshuffle": (79.3, 73.9, 76.7),
            "RFA, one MLP": (79.4, 74.3, 76.7),
            "RFA, two MLPs": (80.0, 74.3, 77.4),
            "RFA, three MLPs": (79.7, 74.2, 76.6),
        },
    ),
    PaperTable(
        number=7,
        is_ablation=True,
        title="Ablation of the attention mask",
        columns=_RES_MEANS,
        protocol=_RES_PROTOCOL + "; mean of the splits",
        published={
            "causal": (78.4, 72.7, 75.5),
            "image to image": (79.0, 73.5, 75.8),
            "image to image and [SEG]": (80.0, 74.3, 77.4),
            "image to image, [SEG] and text": (80.2, 74.9, 77.0),
            "bidirectional": (80.2, 75.1, 76.9),
        },
    ),
    PaperTable(
        number=9,
        title="Questions",
        columns=(
            Column("VQAv2", ("vqav2/val",), "accuracy"),
            Column("OKVQA", ("okvqa/val",), "accuracy"),
            Column("VizWiz", ("vizwiz/val",), "accuracy"),
            Column("GQA", ("gqa/testdev",), "accuracy"),
            Column("TextVQA", ("textvqa/val",), "accuracy"),
            Column("POPE", ("pope",), "f1"),
            Column("MMB-en", ("mmbench-en/dev",), "circular"),
            Column("MMB-cn", ("mmbench-cn/dev",), "circular"),
            Column("MME", ("mme",), "total"),
        ),
        protocol="as InternVL's evaluation; which splits were scored is not stated for every column",
        published={
            "InternVL3-2B": (80.1, 56.1, 56.6, 60.7, 77.0, 89.6, 81.1, 78.4, 2221.2),
            "InternVL3-8B": (81.8, 61.9, 63.4, 63.2, 78.9, 91.1, 83.4, 82.2, 2415.4),
            "SELF1E-2B": (77.7, 48.5, 67.8, 61.5, 71.7, 89.4, 69.6, 66.2, 2014.6),
            "SELF1E-8B": (80.2, 54.0, 69.9, 64.1, 72.3, 91.1, 74.6, 72.0, 2265.1),
        },
    ),
    PaperTable(
        number=10,
        is_ablation=True,
        title="Other base models",
        columns=_res_columns(),
        protocol=_RES_PROTOCOL,
        published={
            "SELF1E-2B, InternVL3-2B": (80.2, 82.1, 77.6, 74.6, 79.1, 69.2, 77.0, 77.8),
            "SELF1E-2B, InternVL2-2B": (77.7, 80.6, 74.6, 71.5, 76.7, 66.9, 74.3, 74.7),
            "SELF1E-2B, InternVL2.5-2B": (80.1, 82.2, 78.0, 74.7, 78.7, 69.8, 76.5, 77.6),
            "SELF1E-SEG-2B, InternVL3-2B": (84.3, 85.4, 82.3, 78.9, 83.5, 75.1, 80.4, 81.0),
            "SELF1E-SEG-2B, InternVL2-2B": (83.5, 85.5, 81.4, 77.7, 82.0, 72.9, 79.5, 80.1),
            "SELF1E-SEG-2B, InternVL2.5-2B": (85.2, 86.7, 83.5, 79.9, 83.4, 75.2, 81.0, 82.3),
        },
    ),
    PaperTable(
        number=11,
        is_ablation=True,
        title="Ablation of how the resolution is kept",
        columns=_RES_MEANS,
        protocol=_RES_PROTOCOL + "; mean of the splits",
        published={
            "baseline": (76.2, 72.3, 74.5),
            "scanning": (78.3, 73.3, 76.3),
            "self-replication": (78.9, 73.5, 76.3),
        },
    ),
    PaperTable(
        number=13,
        title="MME by task",
        columns=tuple(
            Column(label, ("mme",), figure if figure == "total" else f"score/{figure}")
            for label, figure in (
                ("Exist.", "existence"),
                ("Count", "count"),
                ("Pos.", "position"),
                ("Color", "color"),
                ("Post.", "posters"),
                ("Celeb.", "celebrity"),
                ("Scene", "scene"),
                ("Landm.", "landmark"),
                ("Artw.", "artwork"),
                ("OCR", "OCR"),
                ("Comm.", "commonsense_reasoning"),
                ("Num.", "numerical_calculation"),
                ("Trans.", "text_translation"),
                ("Code", "code_reasoning"),
                ("Total", "total"),
            )
        ),
        protocol="two questions per picture, points; the size of the SELF1E model is not stated",
        published={
            "SELF1E": (
                *(190.00, 140.00, 153.33, 175.00, 164.29, 159.41, 160.25, 156.50, 140.50, 102.50),
                *(97.86, 100.00, 162.50, 112.50, 2014.64),
            ),
            "InternVL3-2B": (
                *(195.00, 165.00, 136.67, 170.00, 157.48, 155.00, 156.25, 163.75, 156.75, 155.00),
                *(115.71, 105.00, 185.00, 147.50, 2164.11),
            ),
        },
    ),
)

SUITES: dict[str, tuple[str, ...]] = {
    "res": TABLES[0].benchmarks,
    "gres": TABLES[1].benchmarks,
    "reason": TABLES[2].benchmarks,
    "ovs": TABLES[3].benchmarks,
    "vqa": TABLES[7].benchmarks,
    "paper": tuple(dict.fromkeys(name for table in TABLES for name in table.benchmarks)),
    "nano": (
        "scenes/test",
        "scenes-held-out/test",
        "scenes-questions/test",
        "scenes-classes/test",
        "ccp/val",
        "camvid/val",
    ),
}
"""What ``--suite`` takes."""


def find_suite(name: str) -> tuple[str, ...]:
    """List a suite's benchmarks.

    Raises:
        SettingError: There is none of that name.
    """
    if name not in SUITES:
        raise SettingError(f"Unknown suite {name!r}.{did_you_mean(name, SUITES)} Known: {', '.join(SUITES)}.")
    return SUITES[name]


def tables_of(benchmarks: Sequence[str]) -> list[PaperTable]:
    """Those tables to which the benchmarks give at least one whole column."""
    there: set[Any] = set(benchmarks)
    return [table for table in TABLES if any(set(column.parts) <= there for column in table.columns)]
