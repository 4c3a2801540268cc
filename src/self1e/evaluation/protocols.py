"""Protocol ids: what a printed number means, and the metric that computes it (METRICS 0, G5).

``PROTOCOLS["res.sentence"].metric()`` is an empty metric. The same name for two rules, or two names in one table, is
how numbers of this field stop being comparable: so every dump of rows carries its ``Run``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from self1e.data import class_names
from self1e.data.scenes.shapes import KINDS
from self1e.errors import SettingError, did_you_mean
from self1e.evaluation.metrics.choices import MMBench
from self1e.evaluation.metrics.concepts import ConceptF1
from self1e.evaluation.metrics.generalized import GeneralizedIoU
from self1e.evaluation.metrics.masks import MaskIoU
from self1e.evaluation.metrics.rows import Metric, Row
from self1e.evaluation.metrics.semantic import SemanticIoU
from self1e.evaluation.metrics.vqa import ExactMatch, Submitted, VqaAccuracy
from self1e.evaluation.metrics.yes_no import Mme, Pope


@dataclass(frozen=True)
class Protocol:
    """One way to measure one kind of benchmark."""

    metric: Callable[[], Metric]
    headline: tuple[str, ...]
    """Figures that a table shows."""
    unit: str
    """What one sample is, and what sets this protocol apart."""


PROTOCOLS: dict[str, Protocol] = {
    "res.sentence": Protocol(MaskIoU, ("ciou", "giou"), "one sentence of one ref of one picture, asked alone"),
    "res.ref_concat": Protocol(MaskIoU, ("ciou", "giou"), "one ref, its sentences in one query; not comparable"),
    "res.image_joint": Protocol(
        MaskIoU, ("ciou", "giou"), "one sentence, those of all refs of the picture in one conversation; not comparable"
    ),
    "gres.official": Protocol(
        GeneralizedIoU, ("giou", "ciou", "n_acc", "t_acc"), "one expression; the model rejects explicitly"
    ),
    "gres.mask_empty": Protocol(
        partial(GeneralizedIoU, "mask_empty"), ("giou", "ciou", "n_acc", "t_acc"), "a mask without a pixel rejects"
    ),
    "gres.mask_empty_50": Protocol(
        partial(GeneralizedIoU, "mask_empty", empty_area=50),
        ("giou", "ciou", "n_acc", "t_acc"),
        "a mask of at most 50 pixels rejects",
    ),
    "gres.gsva_joint": Protocol(
        partial(GeneralizedIoU, "gsva"), ("giou", "ciou"), "a false rejection still earns its mask; not comparable"
    ),
    "reason.first": Protocol(MaskIoU, ("giou", "ciou"), "one picture, its first text; 255 is ignored"),
    "reason.best_oracle": Protocol(MaskIoU, ("giou", "ciou"), "the best of a picture's texts; an oracle"),
    "ovs.d2/ade20k-150": Protocol(partial(SemanticIoU.of, "ade20k-150"), ("miou_cls", "miou_cls_mmseg"), "one picture"),
    "ovs.d2/pc-59": Protocol(partial(SemanticIoU.of, "pc-59"), ("miou_cls", "miou_cls_mmseg"), "one picture"),
    "ovs.d2/pc-459": Protocol(partial(SemanticIoU.of, "pc-459"), ("miou_cls", "miou_cls_mmseg"), "one picture, uint16"),
    "ovs.d2/pas-20": Protocol(partial(SemanticIoU.of, "pas-20"), ("miou_cls", "miou_cls_mmseg"), "one picture"),
    "ovs.d2/camvid": Protocol(
        partial(SemanticIoU, class_names.CAMVID, ignore=11),
        ("miou_cls", "miou_cls_mmseg"),
        "one picture; not published with this method",
    ),
    "ovs.d2/scenes": Protocol(
        partial(SemanticIoU, tuple(f"the {kind}" for kind in KINDS), ignore=255),
        ("miou_cls", "miou_cls_mmseg"),
        "one drawn scene, kinds of shapes",
    ),
    "cgf1": Protocol(ConceptF1, ("cgf1", "pmf1", "il_mcc"), "one phrase on one picture, any number of instances"),
    "vqa.m4c": Protocol(VqaAccuracy, ("accuracy",), "one question, ten answers, EvalAI's normaliser"),
    "vqa.official": Protocol(
        partial(VqaAccuracy, "official"), ("accuracy",), "one question, ten answers, the VQA API's normaliser"
    ),
    "gqa.exact": Protocol(ExactMatch, ("accuracy",), "one question, one answer"),
    "scenes.exact": Protocol(ExactMatch, ("accuracy",), "one question about a drawn scene, one answer"),
    "vqa.submission": Protocol(Submitted, (), "one question whose answer the test server keeps: no score here"),
    "pope.ivl": Protocol(
        Pope, ("f1", "pooled/accuracy", "pooled/precision", "pooled/recall", "pooled/yes"), "mean F1 of three files"
    ),
    "pope.pooled": Protocol(
        Pope, ("pooled/f1", "pooled/accuracy", "pooled/precision", "pooled/recall", "pooled/yes"), "one F1 over all"
    ),
    "mme": Protocol(Mme, ("perception", "cognition", "total"), "two questions per picture"),
    "mmb.circular": Protocol(MMBench, ("circular",), "a question in all rotations; static"),
    "mmb.vanilla": Protocol(MMBench, ("vanilla",), "a question as it stands; static"),
}

EXPECTED_SAMPLES = {
    "refcoco/val": 10_834, "refcoco/testA": 5_657, "refcoco/testB": 5_095,
    "refcoco+/val": 10_758, "refcoco+/testA": 5_726, "refcoco+/testB": 4_889,
    "refcocog/val": 4_896, "refcocog/test": 9_602,
    "reasonseg/val": 200, "reasonseg/test": 779,
    "ade20k-150/val": 2_000, "pc-59/val": 5_105, "pc-459/val": 5_105,
    "pas-20/val": 1_449,
}  # fmt: skip
"""Samples of complete benchmarks, for ``Metric.check_complete``: expressions with ``res.sentence`` (RefCOCOg: umd)."""

POINTS = frozenset({"perception", "cognition", "total"})
"""Figures that are points already, not fractions."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a number must say about itself. Rows of two runs never mix."""

    model: str
    """Name or folder, and revision or hash: other weights are another model."""
    protocol: str
    """A key of ``PROTOCOLS``."""
    dataset: str
    """Name and split, e.g. ``"refcoco/val"``."""
    annotations: str
    """Hash of the annotation file."""
    prompt: str
    """Id of the prompt template."""
    answer: Literal["generated", "teacher-forced"]
    """Whether the model wrote [SEG] itself (what a user gets) or found it in the prompt (published tables)."""
    threshold: float = 0.0
    """Mask logits above it are foreground."""
    resolution: str = "native"
    """Where IoU is computed: the picture's own size."""
    rejection: str = "none"
    """How "not there" is said besides an empty mask: ``generated`` (no [SEG] is written), ``score < 0.61``, or both."""

    def __post_init__(self) -> None:
        protocol(self.protocol)
        if self.answer not in ("generated", "teacher-forced"):
            raise SettingError(f"answer={self.answer!r}; known are 'generated' and 'teacher-forced'.")
        empty = [name for name, value in asdict(self).items() if value == ""]
        if empty:
            raise SettingError(f"A run must say its {', '.join(empty)}: a number without is not comparable.")


def protocol(name: str) -> Protocol:
    """Find a protocol, or say which are known."""
    if name not in PROTOCOLS:
        raise SettingError(f"Unknown protocol {name!r}.{did_you_mean(name, PROTOCOLS)} Known: {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def table(run: Run, rows: Iterable[Row]) -> dict[str, Any]:
    """Compute every figure of a run from its rows: a pure function of a dump."""
    return protocol(run.protocol).metric().add_rows(rows).result()


def printed(name: str, value: float | None) -> str:
    """Write a figure as a table has it: percent (MME: points) with two decimals, "-" where it is undefined."""
    if value is None:
        return "-"
    return f"{value:.2f}" if name.split("/")[0] in POINTS else f"{100 * value:.2f}"
