"""What folded weights save: plain against folded, in seconds, memory and counted operations.

    python benchmarks/inference.py                     # writes docs/results/inference.md and .json
    python benchmarks/inference.py --models nano --no-count --out /tmp/inference
    python benchmarks/inference.py --models "" --out /tmp/inference      # operations only

Times are of ``encode`` and ``segment``, so of everything a user waits for; the two paths take turns, and a median is
reported. Memory is the peak above what the loaded model takes. Operations are counted on the meta device, which has no
numbers: 2 per multiply-add, of matrix products, convolutions and attention (a dense kernel's, masked or not).
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    AFTER,
    BEFORE,
    NANO,
    REST,
    ROOT,
    SIZES,
    Peak,
    facts,
    operations,
    published_config,
    random_model,
    timed,
)
from PIL import Image

import self1e
from self1e.inference.folded import FoldedModel
from self1e.inference.segmenter import Self1E
from self1e.model import Self1EConfig, Self1EForConditionalGeneration
from self1e.model.mask_head import stitch_tiles
from self1e.processing.image import Self1EImageProcessor
from self1e.processing.processor import Self1EProcessor

PATHS = ("plain", "folded")
MANY = 150
"""Queries of a large vocabulary: the classes of ADE20K."""


def load(name: str, device: str, dtype: torch.dtype) -> Self1E:
    """Load a model, or make one of published sizes with random weights."""
    if name not in SIZES:
        return self1e.load(name, device=device, dtype=dtype)
    model = random_model(published_config(name), device, dtype)
    tokenizer = Self1EProcessor.from_pretrained(NANO).tokenizer
    processor = Self1EProcessor(Self1EImageProcessor(), tokenizer)
    return Self1E(model, processor, name=f"{name} (random weights)")


# --------------------------------------------------------------------------- seconds and bytes


def measure(model: Self1E, tiles: int, queries: int, repeats: int) -> list[dict[str, Any]]:
    """Time encoding a picture and asking it, in turns."""
    side = model.processor.image_processor.tile_size
    noise = np.random.default_rng(0).integers(0, 256, (2, 2 * tiles, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((tiles * side, side))
    words = [f"the {colour} thing" for colour in ("red", "green", "blue", "large", "small")]
    asked = [words[index % len(words)] for index in range(queries)]
    settings: dict[str, Any] = {path: {"exact": path} for path in PATHS}
    encode: dict[str, list[float]] = {path: [] for path in PATHS}
    segment: dict[str, list[float]] = {path: [] for path in PATHS}
    peaks = dict.fromkeys(PATHS, 0)
    for repeat in range(repeats + 1):
        for path in PATHS:
            gc.collect()
            with Peak(model.device) as peak:
                encoded, seconds = timed(
                    lambda path=path: model.encode(picture, max_tiles=tiles, **settings[path]), model.device
                )
                _, more = timed(
                    lambda path=path, encoded=encoded: model.segment(encoded, asked, **settings[path]), model.device
                )
            assert encoded.grid.num_tiles == tiles
            if repeat:  # the first folds, reads the prefix and wakes everything
                encode[path].append(seconds)
                segment[path].append(more)
                peaks[path] = max(peaks[path], peak.bytes)
    return [
        {
            "model": model.name,
            "tiles": tiles,
            "queries": queries,
            "path": path,
            "encode_seconds": statistics.median(encode[path]),
            "segment_seconds": statistics.median(segment[path]),
            "spread": [min(segment[path]), max(segment[path])],
            "peak_bytes": peaks[path],
        }
        for path in PATHS
    ]


# --------------------------------------------------------------------------- operations


def count(name: str, tile_counts: Sequence[int], query_counts: Sequence[int]) -> list[dict[str, Any]]:
    """Count the operations of one picture three ways, for every number of tiles and queries.

    ``literal``: as published; every query runs everything, with the tokens behind [SEG] and all next-token scores.
    ``plain``: our plain modules; vision once. ``folded``: and everything else that `self1e.inference.folded` says.
    """
    config = published_config(name) if name in SIZES else Self1EConfig.from_pretrained(NANO)
    with torch.device("meta"):
        model = Self1EForConditionalGeneration(config).eval()
    engine = FoldedModel(model)
    rows = []
    for tiles in tile_counts:
        vision = counted(lambda tiles=tiles: plain_vision(model, tiles))
        query = counted(lambda tiles=tiles: plain_query(model, tiles, BEFORE + AFTER))
        literal = counted(lambda tiles=tiles: plain_query(model, tiles, BEFORE + AFTER + REST, all_scores=True))
        encoding, prefix, further = count_folded(engine, tiles)
        rows += [
            {
                "model": name,
                "tiles": tiles,
                "queries": queries,
                "literal": queries * (vision + literal),
                "plain": vision + queries * query,
                "folded": encoding + queries * further,
                "once_per_model": prefix,
            }
            for queries in query_counts
        ]
    return rows


def count_folded(engine: FoldedModel, tiles: int) -> tuple[int, int, int]:
    """Count encoding, the prefix (once per model), and one query."""
    config = engine.config
    word = next(token for token in range(1, 9) if token not in (config.image_token_id, config.seg_token_id))
    # A prefix of its own for each number of tiles, so that it is not known yet.
    prefix = [*[word] * (BEFORE - tiles), *[word + 10] * tiles]
    ids = [*prefix, *[config.image_token_id] * (tiles * config.image_seq_length), *[word] * (AFTER - 1)]
    levels = torch.empty(tiles, 3, config.tile_size, config.tile_size, dtype=torch.uint8, device="meta")
    pictures: list[Any] = []
    encoding = counted(lambda: pictures.extend(engine.fold_pictures(engine.encode(levels, [(1, tiles)]), prefix)))
    first, further = (counted(lambda: engine.mask_logits([[*ids, config.seg_token_id]], pictures)) for _ in "12")
    return encoding, first - further, further


def counted(work: Callable[[], Any]) -> int:
    """Count operations without gradients."""
    with torch.no_grad():
        return operations(work)


def plain_vision(model: Self1EForConditionalGeneration, tiles: int) -> None:
    """Vision encoder, projector and fine branch of the plain modules."""
    side = model.config.tile_size
    model.encode_pictures(torch.empty(tiles, 3, side, side, device="meta", dtype=model.dtype), [(1, tiles)])


def plain_query(model: Self1EForConditionalGeneration, tiles: int, words: int, *, all_scores: bool = False) -> None:
    """Language model and mask head of the plain modules; their own forward reads numbers, which meta has not."""
    config = model.config
    width, side = config.text_config.hidden_size, config.patches_per_side
    coarse_side = side // config.compression
    image = tiles * coarse_side**2

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="meta", dtype=model.dtype)

    length = words + image
    allowed = torch.ones(1, 1, length, length, dtype=torch.bool, device="meta")
    positions = torch.arange(length, device="meta")[None]
    hidden = model.model.language_model(
        inputs_embeds=empty(1, length, width), attention_mask=allowed, position_ids=positions, use_cache=False
    ).last_hidden_state
    model.lm_head(hidden if all_scores else hidden[:, -1:])
    coarse = stitch_tiles(empty(1, tiles, coarse_side, coarse_side, width), 1, tiles)
    model.mask_head(
        fine=stitch_tiles(empty(1, tiles, side, side, width), 1, tiles),
        coarse_in=coarse,
        coarse_out=coarse,
        seg=hidden[:, -1],
        picture_of_row=torch.zeros(1, dtype=torch.long, device="meta"),
        row_of_seg=None,
    )


# --------------------------------------------------------------------------- the table


def as_markdown(report: dict[str, Any]) -> str:
    """Write both tables."""
    lines = ["# Inference: plain against folded", ""]
    lines += [
        f"Command: `{report['command']}`, commit {report['commit']}. {report['hardware']}, {report['threads']} "
        f"thread(s), {report['dtype']}, torch {report['torch']}, transformers {report['transformers']}. "
        "What is folded: [speed](../speed.md).",
        "",
    ]
    if report["measured"]:
        lines += [
            "## Time and memory",
            "",
            "One picture; medians. Memory is the peak above the loaded model.",
            "",
            "| model | tiles | queries | path | encode | segment | both | faster | memory |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
    plain = 0.0
    for row in report["measured"]:
        both = row["encode_seconds"] + row["segment_seconds"]
        plain = both if row["path"] == "plain" else plain
        lines.append(
            f"| {row['model']} | {row['tiles']} | {row['queries']} | {row['path']} | {row['encode_seconds']:.3f} s "
            f"| {row['segment_seconds']:.3f} s | {both:.3f} s | {plain / both:.2f} x "
            f"| {row['peak_bytes'] / 1e6:.0f} MB |"
        )
    if report["counted"]:
        lines += [
            "",
            "## Operations",
            "",
            f"TFLOP of one picture, counted on the meta device: {BEFORE} tokens before the picture, {AFTER} after it "
            f"up to [SEG]. Literal is the published code's way: everything once per query, {REST} tokens behind [SEG], "
            "next-token scores everywhere.",
            "",
            "| model | tiles | queries | literal | plain | folded | literal / folded |",
            "|---|---|---|---|---|---|---|",
        ]
    for row in report["counted"]:
        values = " | ".join(f"{row[path] / 1e12:.4g}" for path in ("literal", "plain", "folded"))
        lines.append(
            f"| {row['model']} | {row['tiles']} | {row['queries']} | {values} | {row['literal'] / row['folded']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="nano,InternVL3-1B", help=f"nano, a folder, or {', '.join(SIZES)}")
    parser.add_argument("--tiles", default="1", help="tiles per picture, separated by commas")
    parser.add_argument("--queries", default="1,8", help="queries per picture, separated by commas")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--count", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/inference", help="without ending")
    chosen = parser.parse_args()
    from self1e.inference.loading import choose_device, choose_dtype

    device = choose_device(chosen.device)
    dtype = choose_dtype(chosen.dtype, device)
    tiles, queries = ([int(value) for value in values.split(",")] for values in (chosen.tiles, chosen.queries))
    report = facts(device, dtype) | {"measured": [], "counted": []}
    for name in filter(None, chosen.models.split(",")):
        model = load(name, str(device), dtype)
        for number in tiles:
            for asked in queries:
                report["measured"] += measure(model, number, asked, chosen.repeats)
                print(json.dumps(report["measured"][-2:], indent=1), flush=True)
        del model
    if chosen.count:
        for name in ("nano", *SIZES):
            report["counted"] += count(name, (1,) if name == "nano" else (1, 6, 12), (1, MANY))
    chosen.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    chosen.out.with_suffix(".md").write_text(as_markdown(report))
    print(as_markdown(report))


if __name__ == "__main__":
    main()
