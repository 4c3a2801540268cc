"""What one core loads: read, choose, tile, tokenise, collate; and how many cores a step of SELF1E-2B needs.

    python benchmarks/loader.py --layout ../shared/data/5_layout_fixture_derived \\
        --conformance ../shared/data/1_conformance            # writes docs/results/loader.md and .json

Times are CPU seconds of one process with one thread, so that other work on the machine does not count. Sets that the
fixture lacks take the time of one that is read alike: VQA sets that of LLaVA-Instruct, parts that of refCOCO.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import NANO, ROOT, facts
from padding import Texts, estimated_tokens, golden_tokens, measure, simulated_epoch

from self1e.data.published import BATCH_SIZE, INSTRUCTIONS, TABLE_8, published_mixture
from self1e.data.vqa import VQA_SETS
from self1e.processing.image import Self1EImageProcessor
from self1e.processing.processor import Self1EProcessor
from self1e.training.batching import bucketed
from self1e.training.collate import Collator

SETS = ("ade20k", "cocostuff", "refcoco", "refcoco+", "refcocog", "reasonseg", "llava")
"""What the fixture has."""
LIKE = dict.fromkeys(VQA_SETS, "llava") | {"pascal_part": "refcoco", "paco_lvis": "refcoco"}
MIXTURE = "the mixture"
PICTURE_TFLOP, ROW_TFLOP = 0.746, 0.948
"""Forward of SELF1E-2B, one tile: what a picture costs once, and each row (docs/results/inference.md, plain)."""
TRAINING = 3
"""Forward and backward, over forward."""
FLOOR_TFLOPS, USUAL = 790.0, 0.4
"""The most an H200 does in bfloat16 (TFLOP/s), which leaves a loader least time, and the share of it often reached."""


def build_processor() -> Self1EProcessor:
    """Tiles of 448 pixels and 256 tokens; nano's tokenizer is as fast as a large one."""
    tokenizer = Self1EProcessor.from_pretrained(NANO).tokenizer
    images = Self1EImageProcessor(size={"height": 448, "width": 448})
    return Self1EProcessor(images, tokenizer, image_seq_length=256)


def seconds_each(work: Callable[[int], Any], count: int) -> float:
    """Return CPU seconds per call, the first one left out."""
    work(0)
    start = time.process_time()
    for number in range(count):
        work(number)
    return (time.process_time() - start) / count


def measure_set(layout: Path, name: str, collator: Collator, pictures: int) -> dict[str, float]:
    """Measure one set: CPU seconds per picture of each stage, and rows per picture."""
    epoch = published_mixture(layout, only=[name])
    numbers = [number % len(epoch) for number in range(pictures)]
    items = [epoch[number] for number in numbers]
    part = epoch.parts[name].samples
    batches = max(1, pictures // BATCH_SIZE)
    read = seconds_each(lambda number: part[number % len(part)], pictures)
    chosen = seconds_each(lambda number: epoch[number % len(epoch)], pictures)
    tile = seconds_each(
        lambda number: collator.processor.image_processor(items[number].image, max_tiles=collator.max_tiles), pictures
    )
    collate = seconds_each(
        lambda number: collator([items[(number * BATCH_SIZE + n) % pictures] for n in range(BATCH_SIZE)]), batches
    )
    rows = sum(len(item.rows) for item in items) / pictures
    return {
        "read": read,
        "choose": max(0.0, chosen - read),
        "tile": tile,
        "tokenise_collate": max(0.0, collate / BATCH_SIZE - tile),
        "all": chosen + collate / BATCH_SIZE,
        "rows": rows,
    }


def mean_of_mixture(sets: dict[str, dict[str, float]]) -> dict[str, float]:
    """Weigh the sets as an epoch with a mask in every micro-batch shows them."""
    told = {*INSTRUCTIONS, *VQA_SETS}
    total = sum(TABLE_8.values())
    masked = sum(count for name, count in TABLE_8.items() if name not in told)
    replaced = 1 / BATCH_SIZE
    mean = dict.fromkeys(next(iter(sets.values())), 0.0)
    for name, count in TABLE_8.items():
        share = (1 - replaced) * count / total + (replaced * count / masked if name not in told else 0.0)
        for what, value in sets[LIKE.get(name, name)].items():
            mean[what] += share * value
    return mean


def cores_needed(mixture: dict[str, float]) -> dict[str, float]:
    """Compare with the time that a GPU needs for a picture of the mixture: seconds, and cores per GPU."""
    work = TRAINING * (PICTURE_TFLOP + mixture["rows"] * ROW_TFLOP)
    floor = work / FLOOR_TFLOPS
    return {
        "tflop": work,
        "floor_seconds": floor,
        "floor_cores": mixture["all"] / floor,
        "usual_seconds": floor / USUAL,
        "usual_cores": mixture["all"] / (floor / USUAL),
    }


def measure_ordering(texts: Texts, items: int) -> float:
    """CPU seconds per picture that bucketing adds: outlines of simulated samples, sorting."""
    ordered = bucketed(simulated_epoch(texts))
    window = ordered.window * ordered.micro_batch  # the first one is a rehearsal
    return seconds_each(lambda number: ordered.original(window * (number > 0) + number), items)


def measure_padding(texts: Texts, tokenizer: Path | None, windows: int) -> list[dict[str, Any]]:
    """Compare both orders, with each kind of conversations and each count of tokens."""
    counts: dict[str, Any] = {"estimate": estimated_tokens}
    if tokenizer is not None:
        counts["golden"] = golden_tokens(tokenizer)
    found: list[dict[str, Any]] = []
    for conversations in ("fixture", "real"):
        for name, tokens in counts.items():
            shares = measure(simulated_epoch(texts, conversations=conversations), tokens, windows=windows)
            found.append({"conversations": conversations, "tokens": name, "tiles": 1, **shares})
    shares = measure(
        simulated_epoch(texts),
        lambda turns, tiles: estimated_tokens(turns, tiles, None),
        windows=windows,
        max_tiles=12,
    )
    return [*found, {"conversations": "real", "tokens": "estimate", "tiles": 12, **shares}]


def as_markdown(result: dict[str, Any]) -> str:
    """Write the report."""
    about, needed = result["facts"], result["needed"]
    lines = [
        "# Loading data",
        "",
        f"Command: `{about['command']}`, commit {about['commit']}, {about['date']}. {about['hardware']}, one core, "
        f"torch {about['torch']}.",
        "",
        "## Throughput of one core",
        "",
        "CPU milliseconds per picture, and pictures per CPU second. A picture is read and decoded with its masks, its "
        "queries chosen, cut into tiles of 448 pixels, its rows tokenised and collated. The mixture weighs the sets by "
        "Table 8 and the masks that every micro-batch gets; VQA sets count as LLaVA-Instruct, parts as refCOCO.",
        "",
        "| set | tiles up to | rows | read | choose | tile | tokenise, collate | all | pictures/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for tiles, sets in result["sets"].items():
        for name, row in sets.items():
            stages = " | ".join(f"{1000 * row[what]:.1f}" for what in ("read", "choose", "tile", "tokenise_collate"))
            lines.append(
                f"| {name} | {tiles} | {row['rows']:.2f} | {stages} | {1000 * row['all']:.1f} | {1 / row['all']:.0f} |"
            )
    lines += [
        "",
        f"Bucketing adds {1000 * result['ordering']:.2f} ms per picture and worker process.",
        "",
        "## Does it starve a step of SELF1E-2B?",
        "",
        f"Assumed, not measured: a step costs {TRAINING} forwards, {needed['tflop']:.1f} TFLOP per picture of the "
        f"mixture (one tile). A GPU that reached {FLOOR_TFLOPS:.0f} TFLOP/s, an H200's most, would take "
        f"{1000 * needed['floor_seconds']:.1f} ms, and {needed['floor_cores']:.1f} such cores would keep up with it; "
        f"at {USUAL:.0%} of that, {1000 * needed['usual_seconds']:.1f} ms and {needed['usual_cores']:.1f} cores. "
        f"{math.ceil(needed['floor_cores'])} loader process(es) per GPU, a core each, are then enough for the fastest "
        "step that the hardware allows.",
        "",
        "## Padding",
        "",
        "Share of padding among all tokens, simulated with Table 8's counts (`benchmarks/padding.py` says how texts "
        "are drawn and tokens counted), micro-batches of 5 pictures, windows of 32 micro-batches.",
        "",
        "| LLaVA-Instruct | tokens | tiles up to | rows | published order | bucketed |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['conversations']} | {row['tokens']} | {row['tiles']} | {row['rows']:.0f} | {row['published']:.1%} | "
        f"{row['bucketed']:.1%} |"
        for row in result["padding"]
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", type=Path, required=True, help="holds dataset/, as published")
    parser.add_argument("--conformance", type=Path, required=True, help="pieces of official files")
    parser.add_argument("--tokenizer", type=Path, help="folder of the golden tokenizer")
    parser.add_argument("--pictures", type=int, default=60, help="per set")
    parser.add_argument("--windows", type=int, default=12, help="of simulated micro-batches")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/loader")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    processor, texts = build_processor(), Texts(options.layout, options.conformance)
    sets: dict[int, dict[str, dict[str, float]]] = {}
    for tiles in (1, 12):
        collator = Collator(processor, max_tiles=tiles, max_length=512 if tiles == 1 else None)
        sets[tiles] = {name: measure_set(options.layout, name, collator, options.pictures) for name in SETS}
        sets[tiles][MIXTURE] = mean_of_mixture(sets[tiles])
    result = {
        "facts": facts(torch.device("cpu"), torch.float32),
        "sets": sets,
        "needed": cores_needed(sets[1][MIXTURE]),
        "ordering": measure_ordering(texts, 4 * 160),
        "padding": measure_padding(texts, options.tokenizer, options.windows),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
