"""Benchmarks of expressions: each target of a picture is one sample, asked alone, all on one encoding.

RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO, ReasonSeg, drawn scenes, photographs of clothing. A row is
`self1e.evaluation.metrics.masks`' with two more keys: ``picture`` and ``subsets``, the sub-splits that it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from self1e.data.published import find_layout, open_benchmark
from self1e.data.sample import Sample, Target
from self1e.errors import Self1EError, SettingError
from self1e.evaluation.benchmarks.interface import Answer, Benchmark, Opened, Options, hash_files, hash_names
from self1e.evaluation.metrics.masks import mask_row, split_truth
from self1e.evaluation.metrics.rows import Row
from self1e.evaluation.protocols import EXPECTED_SAMPLES
from self1e.processing.prompts import SEG_TOKEN

PROMPT = "validation"
"""Id of the published question for mask inference, by kind of the query (METHOD section 3.6)."""

Subsets = Callable[[Target], tuple[str, ...]]
IsAbsent = Callable[[Target], bool]

GRES = ("gres.mask_empty", "gres.mask_empty_50")
_PICTURES = {"grefcoco/val": 1500, "grefcoco/testA": 750, "grefcoco/testB": 750}
_SCENES = 500


def has_no_pixel(target: Target) -> bool:
    """Whether a query means nothing in its picture, where the truth alone says so."""
    return not bool(target.mask.any())


def measure_targets(
    model: Any,
    sample: Sample,
    options: Options,
    subsets: Subsets = lambda target: (),
    is_absent: IsAbsent = has_no_pixel,
) -> list[Row]:
    """Segment every target of a picture, encoded once; one row each.

    If the queries cannot be run together, they are run one by one, so that only those fail that must; and so does a
    result that cannot be counted (a score that is no number, a mask of another size).
    """
    targets = sample.targets
    encoded = model.encode(sample.image, exact=options.exact)
    try:
        results = list(_ask(model, encoded, targets, options))
    except Exception:
        results = [_ask_alone(model, encoded, target, options) for target in targets]
    rows = []
    for k, (target, result) in enumerate(zip(targets, results, strict=True)):
        told = (subsets(target), options, model.no_target_threshold, is_absent(target))
        try:
            rows.append(target_row(sample.source, k, target, result, *told))
        except Self1EError as error:
            rows.append(target_row(sample.source, k, target, error, *told))
    return rows


def _ask(model: Any, encoded: Any, targets: Sequence[Target], options: Options) -> Any:
    texts = [target.text for target in targets]
    kinds: list[Any] = [target.kind for target in targets]
    if options.answer == "teacher-forced":
        return model.segment(encoded, texts, kind=kinds, exact=options.exact, reject=False)
    from self1e.inference.generated import segment_generated

    return segment_generated(model, encoded, texts, kind=kinds, exact=options.exact, reject=False)


def _ask_alone(model: Any, encoded: Any, target: Target, options: Options) -> Any:
    try:
        return _ask(model, encoded, [target], options)[0]
    except Exception as error:
        return error


def target_row(
    source: str,
    k: int,
    target: Target,
    result: Any,
    subsets: tuple[str, ...] = (),
    options: Options | None = None,
    no_target_threshold: float | None = None,
    gt_nt: bool | None = None,
) -> Row:
    """Make the row of one target.

    Args:
        source: Names the picture.
        k: Which of its targets.
        target: Words and truth.
        result: A ``Segmentation`` of this query alone; or an error, or None: the model failed.
        subsets: Sub-splits that the row belongs to.
        options: How it was asked; a generated answer without [SEG] says "not there".
        no_target_threshold: Of a calibrated model: a lower score says so too.
        gt_nt: The annotation says that the thing is not there; left out, an empty truth says so.
    """
    truth, ignored = split_truth(target.mask)
    if target.ignore is not None:
        ignored = ignored | target.ignore
    found: Any = None if isinstance(result, Exception) else result
    failed = found is None
    said = None if failed else found.text[0]
    score = None if failed else float(found.scores[0])
    rejected: bool | None = None
    if not failed and score is not None:
        if options is not None and options.answer == "generated":
            rejected = SEG_TOKEN not in str(said)
        if no_target_threshold is not None:
            rejected = bool(rejected) or score < no_target_threshold
    row = mask_row(
        f"{source}-{k}",
        None if failed else found.mask(0),
        truth & ~ignored if target.ignore is not None else truth,
        ignored=ignored if ignored.any() else None,
        score=score,
        pred_nt=rejected,
        gt_nt=has_no_pixel(target) if gt_nt is None else gt_nt,
        text=said,
        group=source,
    )
    row |= {"query": target.text, "subsets": list(subsets)}
    if options is not None and options.save_masks and not failed:
        row["mask"] = found.to_coco_rle()[0]
    return row | {"error": f"{type(result).__name__}: {result}"} if isinstance(result, Exception) else row


def failed_targets(
    opened: Opened, index: int, subsets: Subsets = lambda target: (), is_absent: IsAbsent = has_no_pixel
) -> list[Row]:
    """Rows of a picture that cannot be read: its queries and truths come from the annotations alone."""
    units = opened.units
    find: Any = getattr(units, "targets", None)
    try:
        source, targets = find(index) if find is not None else ("", None)
    except Self1EError:  # the annotations are at fault
        targets = None
    if targets is None:
        # How many queries it has is not known without it: one row stands for it, with an empty truth.
        empty = Target(text="", mask=np.zeros((1, 1), dtype=bool))
        return [target_row(f"{_name_of(units, index)}", 0, empty, None)]
    return [
        target_row(source, k, target, None, subsets(target), gt_nt=is_absent(target))
        for k, target in enumerate(targets)
    ]


def _name_of(units: Any, index: int) -> str:
    if hasattr(units, "sources"):
        return units.sources[index]
    names = getattr(units, "names", None) or getattr(units, "image_ids", None)
    return f"{type(units).__name__.lower()}/{getattr(units, 'split', '')}/{names[index] if names else index}"


def expressions_benchmark(
    name: str,
    protocols: tuple[str, ...],
    opener: Callable[[Path | None], Opened],
    *,
    subsets: Subsets = lambda target: (),
    is_absent: IsAbsent = has_no_pixel,
    explicit: tuple[str, ...] = (),
    expected: int | None = None,
    expected_units: int | None = None,
    answers: tuple[Answer, ...] = ("teacher-forced", "generated"),
) -> Benchmark:
    """Make a benchmark of expressions; what is not said here is the same for all."""
    return Benchmark(
        name=name,
        protocols=protocols,
        explicit_protocols=explicit,
        prompt=PROMPT,
        open=opener,
        measure=lambda model, unit, options: measure_targets(model, unit, options, subsets, is_absent),
        failed=lambda opened, index: failed_targets(opened, index, subsets, is_absent),
        expected=expected,
        expected_units=expected_units,
        answers=answers,
    )


# ---------------------------------------------------------------------- published


def published(name: str) -> Benchmark:
    """A split of RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO or ReasonSeg."""
    which = name.split("/")[0]

    def opener(data: Path | None) -> Opened:
        folder = need_folder(data, name)
        samples: Any = open_benchmark(folder, name)
        root = find_layout(folder).root
        if which == "reasonseg":
            notes = [samples.folder / f"{stem}.json" for stem in samples.names]
            missing = [str(note) for note in notes if not note.is_file()]
            hashed = hash_files(note for note in notes if note.is_file())
        else:
            missing = samples.missing_pictures()
            hashed = hash_files(path for path in (root / "refer_seg" / which).iterdir() if path.is_file())
        return Opened(units=samples, annotations=hashed, problems=summarise(missing))

    if which == "grefcoco":
        tags = {"none": ("no target",), "one": ("one target",), "several": ("several targets",)}
        return expressions_benchmark(
            name,
            GRES,
            opener,
            explicit=("gres.official",),
            expected_units=_PICTURES[name],
            subsets=lambda target: tags[target.tag],
            # A phrase that means crowds alone has an empty mask, and still means something (METRICS 2.1).
            is_absent=lambda target: target.tag == "none",
        )
    if which == "reasonseg":
        return expressions_benchmark(
            name,
            ("reason.first",),
            opener,
            expected=EXPECTED_SAMPLES[name],
            subsets=lambda target: ("long" if target.kind == "sentence" else "short",),
        )
    return expressions_benchmark(name, ("res.sentence",), opener, expected=EXPECTED_SAMPLES[name])


def need_folder(data: Path | None, name: str) -> Path:
    """Say that a benchmark needs data, or return their folder."""
    if data is None:
        raise SettingError(f"{name} needs --data: the folder that holds dataset/ (see docs/evaluation.md).")
    return data


def summarise(missing: Sequence[str]) -> tuple[str, ...]:
    """One line for any number of missing files."""
    if not missing:
        return ()
    more = f", and {len(missing) - 3} more" if len(missing) > 3 else ""
    what = "1 file is" if len(missing) == 1 else f"{len(missing)} files are"
    return (f"{what} missing: {', '.join(missing[:3])}{more}.",)


# ---------------------------------------------------------------------- drawn, clothing


def scenes(split: str, *, held_out: bool = False) -> Benchmark:
    """Drawn scenes of one split; with compositions that training never shows."""
    from self1e.data.scenes import SINGLE_TARGET_TAGS, Scenes

    name = f"scenes{'-held-out' if held_out else ''}/{split}"

    def opener(data: Path | None) -> Opened:
        chosen: Any = "only" if held_out else "never"
        kind: Any = split
        samples = Scenes(kind, size_wh=(160, 160), length=_SCENES, held_out=chosen)
        return Opened(units=samples, annotations=hash_names([name], "scenes 160x160 seed 0"))

    def subsets(target: Target) -> tuple[str, ...]:
        return (target.tag, *(["single target"] if target.tag in SINGLE_TARGET_TAGS else []))

    return expressions_benchmark(
        name,
        ("res.sentence", *GRES[:1]),
        opener,
        explicit=("gres.official",),
        subsets=subsets,
        expected_units=_SCENES,
    )


def clothing(split: str) -> Benchmark:
    """Clothing Co-Parsing: every named part that is there, and groups of them."""
    from self1e.data.clothing import Clothing

    def opener(data: Path | None) -> Opened:
        root = need_folder(data, f"ccp/{split}") / "ccp"
        samples = Clothing(root, split)
        paths = [root / folder / f"{stem}.{end}" for stem in samples.names for folder, end in _CCP_FILES]
        masks = [path for path in paths if path.suffix == ".png" and path.is_file()]
        return Opened(
            units=samples,
            annotations=hash_files([root / "classes.txt", *masks]),
            problems=summarise([str(path) for path in paths if not path.is_file()]),
        )

    def subsets(target: Target) -> tuple[str, ...]:
        return ("named parts",) if target.tag == "part" else (target.text,)

    return expressions_benchmark(
        f"ccp/{split}",
        ("res.sentence",),
        opener,
        subsets=subsets,
        expected_units=100 if split == "val" else None,
    )


_CCP_FILES = (("images", "jpg"), ("masks", "png"))
