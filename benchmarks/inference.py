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
import ctypes
import gc
import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import self1e
from self1e.inference.folded import FoldedModel
from self1e.inference.segmenter import Self1E
from self1e.model import Self1EConfig, Self1EForConditionalGeneration
from self1e.model.mask_head import stitch_tiles
from self1e.processing.image import Self1EImageProcessor
from self1e.processing.processor import Self1EProcessor

ROOT = Path(__file__).parents[1]
NANO = ROOT / "src/self1e/assets/nano"
PATHS = ("plain", "folded")
BEFORE, AFTER, REST = 42, 28, 3
"""Tokens before the picture, after it up to [SEG], and behind [SEG] ('.', end of turn, newline): METHOD 3.6, Qwen2."""
MANY = 150
"""Queries of a large vocabulary: the classes of ADE20K."""

SIZES: dict[str, tuple[str, int, int, int, int, int, int, int]] = {
    # language model, width, layers, heads, key heads, head size, MLP, vocabulary; public configurations
    "InternVL3-1B": ("qwen2", 896, 24, 14, 2, 64, 4864, 151676),
    "InternVL3-2B": ("qwen2", 1536, 28, 12, 2, 128, 8960, 151676),
    "InternVL3-8B": ("qwen2", 3584, 28, 28, 4, 128, 18944, 151676),
}


def published_config(name: str) -> Self1EConfig:
    """Sizes of a published base model with InternViT-300M, and the ids of nano's tokenizer."""
    family, width, layers, heads, key_heads, head, mlp, vocabulary = SIZES[name]
    text = {
        "model_type": family,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": head,
        "intermediate_size": mlp,
        "vocab_size": vocabulary,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "max_position_embeddings": 32768,
    }
    vision = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "image_size": [448, 448],
        "patch_size": [14, 14],
        "attention_bias": True,
    }
    nano = Self1EConfig.from_pretrained(NANO)
    ids = {"image_token_id": nano.image_token_id, "seg_token_id": nano.seg_token_id}
    return Self1EConfig(text_config=text, vision_config=vision, image_seq_length=256, **ids)


def load(name: str, device: str, dtype: torch.dtype) -> Self1E:
    """Load a model, or make one of published sizes with random weights."""
    if name not in SIZES:
        return self1e.load(name, device=device, dtype=dtype)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # never a copy in another type: it would not fit
    try:
        with torch.device(device):
            model = Self1EForConditionalGeneration(published_config(name)).eval()
    finally:
        torch.set_default_dtype(default)
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


def timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Run, and wait for the device."""
    start = time.perf_counter()
    found = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return found, time.perf_counter() - start


class Peak:
    """Peak memory within a block, above its start: of torch on CUDA, else of the process (Linux only, else 0)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.bytes = 0

    def __enter__(self) -> Peak:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif sys.platform == "linux":
            # Freed memory that the allocator keeps would hide what comes next; musl has no such call.
            getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        self._start = self._now("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        self.bytes = max(self._now("VmHWM") - self._start, 0)

    def _now(self, what: str) -> int:
        if self._device.type == "cuda":
            cuda = torch.cuda
            return (cuda.memory_allocated if what == "VmRSS" else cuda.max_memory_allocated)(self._device)
        if sys.platform != "linux":
            return 0
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith(what)))


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
        vision = operations(lambda tiles=tiles: plain_vision(model, tiles))
        query = operations(lambda tiles=tiles: plain_query(model, tiles, BEFORE + AFTER))
        literal = operations(lambda tiles=tiles: plain_query(model, tiles, BEFORE + AFTER + REST, all_scores=True))
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
    encoding = operations(lambda: pictures.extend(engine.fold_pictures(engine.encode(levels, [(1, tiles)]), prefix)))
    first, further = (operations(lambda: engine.mask_logits([[*ids, config.seg_token_id]], pictures)) for _ in "12")
    return encoding, first - further, further


def operations(work: Callable[[], Any]) -> int:
    """Count."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops()


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


def facts(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Everything that numbers depend on."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "command": shlex.join(["python", "benchmarks/inference.py", *sys.argv[1:]]),
        "commit": commit.stdout.strip() or "unknown",
        "hardware": hardware(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def hardware(device: torch.device) -> str:
    """Name the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


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
