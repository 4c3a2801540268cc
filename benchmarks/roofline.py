"""The least a mask can cost: operations and bytes of every stage, from a configuration, and a machine's floor.

    python benchmarks/roofline.py                                  # a table for 2B and 8B on an H200
    python benchmarks/roofline.py --models nano --peak-flops 1e11 --peak-bytes 1e10

Nothing is run: sums over sizes. ``floor = sum over stages of max(FLOP / peak, bytes / bandwidth)``, so perfect kernels,
each at the machine's limit, and nothing between them. Operations are 2 per multiply-add, of matrix products,
convolutions and attention (all pairs that a kernel computes). Bytes are those a perfect kernel moves: weights once per
pass, and what enters and leaves the stage.

`REWRITES` are what `self1e.inference.folded` does, in the order in which `steps` applies them: none of them is the
published way taken literally, all of them is ours. That `FlopCounterMode` counts the same in running code is a test.

Letters: T tiles; P patches and M image tokens over all tiles; C, D widths of vision encoder and language model.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from common import AFTER, BEFORE, NANO, REST, SIZES, published_config

from self1e.model import Self1EConfig

REWRITES = {
    "share": "vision, projector and f_PUS once per picture (c)",
    "scores": "no next-token scores (f)",
    "tail": "nothing behind [SEG] (e)",
    "prefix": "prefix once per model (d); image rows without a mask",
    "last": "the last layer asks only for what is read (f)",
    "fine": "one block instead of four on the fine branch (a, a2)",
    "final": "final MLP folded into its neighbours (b, b2, b3)",
}
"""What is saved, by name, in the order of the waterfall."""
LITERAL: frozenset[str] = frozenset()
EXACT = frozenset(REWRITES)
SAME_LENGTH = EXACT | {"first"}
"""Of questions that are all equally long: they share the first layer on image tokens (h)."""
IMAGE = EXACT | {"image"}
"""With ``attention="image"``: a model of its own, in which image tokens see no word and are read once per picture."""
STAGES = ("vision", "projector", "prefill", "head", "post")
PICTURE_WH = (640, 480)
H200 = (790e12, 4.3e12)
"""Operations and bytes per second that an H200 reaches with bfloat16: measured, not its data sheet."""


@dataclass(frozen=True)
class Cost:
    """Operations and bytes of a stage."""

    flop: float = 0
    bytes: float = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flop + other.flop, self.bytes + other.bytes)

    def times(self, count: float) -> Cost:
        """Everything that often."""
        return Cost(self.flop * count, self.bytes * count)

    def seconds(self, peak: tuple[float, float]) -> float:
        """Least time on a machine of that many operations and bytes per second."""
        return max(self.flop / peak[0], self.bytes / peak[1])


class _Counter:
    """One model's sizes, on a picture of some tiles."""

    def __init__(self, config: Any, tiles: int, rewrites: Collection[str], itemsize: int) -> None:
        unknown = set(rewrites) - set(REWRITES) - {"image", "first"}
        assert not unknown, f"unknown rewrites {sorted(unknown)}"
        self.on = frozenset(rewrites)
        self.itemsize = itemsize
        self.text, self.vision = config.text_config, config.vision_config
        self.tiles, self.side = tiles, config.tile_size
        self.patches = tiles * config.patches_per_side**2
        self.tokens = self.patches // config.compression**2
        self.blocks = config.compression**2
        self.width = self.text.hidden_size
        self.seen = self.vision.hidden_size
        self.head = getattr(self.text, "head_dim", None) or self.width // self.text.num_attention_heads
        # Where [SEG] itself is not read, attention="image" has no use for it.
        self.seg = 1 if config.seg_readout == "at" else 0

    def pass_of(self, flop: float, weights: float, moved: float) -> Cost:
        return Cost(flop, (weights + moved) * self.itemsize)

    def see(self) -> Cost:
        """Vision encoder."""
        config, width = self.vision, self.seen
        count = self.patches // self.tiles + 1  # with the class token, per tile
        patch = 3 * config.patch_size[0] * config.patch_size[1]
        layer = 4 * width**2 + 2 * width * config.intermediate_size
        flop = 2 * self.patches * patch * width
        flop += config.num_hidden_layers * self.tiles * (2 * count * layer + 4 * count**2 * width)
        weights = patch * width + count * width + config.num_hidden_layers * layer
        return self.pass_of(flop, weights, self.patches * width) + Cost(0, self.tiles * 3 * self.side**2)

    def project(self) -> Cost:
        """Projector, on coarse and on fine features."""
        first, second = self.blocks * self.seen * self.width, self.width**2
        fine = first // self.blocks if "fine" in self.on else first
        flop = 2 * self.tokens * (first + second) + 2 * self.patches * (fine + second)
        weights = first + second + (fine + second if "fine" in self.on else 0)
        return self.pass_of(flop, weights, self.patches * self.seen + (self.tokens + self.patches) * self.width)

    # ------------------------------------------------------------------ the language model

    def layer(self, rows: int, asking: int, pairs: int) -> float:
        """Operations of a decoder layer: rows that answer, rows that ask, pairs of both."""
        text = self.text
        heads = text.num_attention_heads * self.head
        keys = 2 * text.num_key_value_heads * self.head
        mlp = 3 * text.intermediate_size
        return 2 * self.width * (rows * keys + asking * (2 * heads + mlp)) + 4 * heads * pairs

    def language_weights(self) -> float:
        return self.text.num_hidden_layers * self.layer(1, 1, 0) / 2

    def read_picture(self) -> Cost:
        """Image tokens that see no word: once per picture."""
        layers = self.text.num_hidden_layers
        flop = layers * self.layer(self.tokens, self.tokens, self.tokens * (BEFORE + self.tokens))
        kept = 2 * layers * self.text.num_key_value_heads * self.head * (BEFORE + self.tokens)
        return self.pass_of(flop, self.language_weights(), 2 * self.tokens * self.width + kept)

    def read(self, queries: int) -> Cost:
        """Prefill of all queries; ours in one pass, literally in one each."""
        layers, width = self.text.num_hidden_layers, self.width
        scores = 0
        if "image" in self.on:
            tail = AFTER - 1 + self.seg
            keys = BEFORE + self.tokens + tail
            full = self.layer(tail, tail, tail * keys)
            last = self.layer(tail, 1, keys)
            rows, moved = tail, 2 * tail * width
        else:
            tail = AFTER if "tail" in self.on else AFTER + REST
            keys = BEFORE + self.tokens + tail
            if "prefix" in self.on:
                rows, dense = self.tokens + tail, self.tokens * (BEFORE + self.tokens + 1)
                full = self.layer(rows, rows, dense + tail * keys)
                last = self.layer(rows, self.tokens + 1, dense + keys)
            else:
                rows = keys
                full = self.layer(rows, rows, rows**2)
                last = self.layer(rows, self.tokens + 1, (self.tokens + 1) * rows)
            moved = 2 * rows * width
            scores = 0 if "scores" in self.on else width * self.text.vocab_size
        flop = queries * ((layers - 1) * full + (last if "last" in self.on else full) + 2 * rows * scores)
        if "first" in self.on:
            flop -= (queries - 1) * self.layer(self.tokens, self.tokens, self.tokens * (BEFORE + self.tokens + 1))
        passes = 1 if "share" in self.on else queries
        weights = passes * (self.language_weights() + scores)
        return self.pass_of(flop, weights, queries * moved)

    # ------------------------------------------------------------------ the mask head

    def prepare_head(self) -> Cost:
        """What no word changes."""
        square, wide = self.width**2, self.blocks * self.width**2
        first = 0 if "fine" in self.on else square  # joined with the projector's second
        flop = 2 * self.patches * (first + wide) + 2 * self.tokens * (square + wide)
        pixels = self.blocks * self.patches * self.width
        return self.pass_of(flop, square + wide, (self.patches + self.tokens) * self.width + pixels)

    def fuse_picture(self, times: int, passes: int) -> Cost:
        """The picture's side of the dot product, so many times, in so many passes over the weights."""
        square, wide = self.width**2, self.blocks * self.width**2
        pixels = self.blocks * self.patches
        final = 0 if "final" in self.on else 2 * 2 * pixels * square
        flop = 2 * self.tokens * (square + wide) + final
        return self.pass_of(times * flop, passes * (square + wide), times * self.tokens * self.width)

    def score(self) -> Cost:
        """One query's vector, and its product with every pixel; logits in float32."""
        square, pixels = self.width**2, self.blocks * self.patches
        # linear_1 of f'_PUS, then either W1 and W2 joined with b3, or four sub-pixels and the final MLP.
        query = 3 * square + self.width if "final" in self.on else (1 + self.blocks + 2) * square
        return self.pass_of(2 * query + 2 * pixels * self.width, 0, self.width) + Cost(0, 4 * pixels)


def count(
    config: Any,
    tiles: int,
    queries: int,
    rewrites: Collection[str] = EXACT,
    *,
    itemsize: int = 2,
    picture_wh: tuple[int, int] = PICTURE_WH,
) -> dict[str, Cost]:
    """Count one picture with so many queries, stage by stage; what is computed once per model is not counted.

    Args:
        config: A model's configuration; the published switches.
        tiles: Tiles of the picture.
        queries: Queries about it.
        rewrites: Of `REWRITES`; or ``"image"`` or ``"first"`` on top of all of them.
        itemsize: Bytes per number.
        picture_wh: Size of the picture, to which masks are enlarged.
    """
    counter = _Counter(config, tiles, rewrites, itemsize)
    once = 1 if "share" in counter.on else queries
    if "image" in counter.on:
        prefill = counter.read_picture() + counter.read(queries)
        head = counter.prepare_head() + counter.fuse_picture(1, 1)
    else:
        prefill = counter.read(queries)
        head = counter.prepare_head().times(once) + counter.fuse_picture(queries, once)
    pixels = picture_wh[0] * picture_wh[1]
    return {
        "vision": counter.see().times(once),
        "projector": counter.project().times(once),
        "prefill": prefill,
        "head": head + counter.score().times(queries),
        "post": Cost(0, queries * (4 * counter.blocks * counter.patches + pixels)),
    }


def operations(config: Any, tiles: int, queries: int, rewrites: Collection[str] = EXACT) -> float:
    """Count the operations of one picture, over all stages."""
    return sum(cost.flop for cost in count(config, tiles, queries, rewrites).values())


def floor(costs: dict[str, Cost], peak: tuple[float, float]) -> float:
    """Least seconds of all stages, one after the other."""
    return sum(cost.seconds(peak) for cost in costs.values())


def steps(config: Any, tiles: int, queries: int) -> list[tuple[str, float]]:
    """Operations after each rewrite, from literal to ours: the steps of the waterfall."""
    done: set[str] = set()
    found = [("literal", operations(config, tiles, queries, done))]
    for name in REWRITES:
        done.add(name)
        found.append((name, operations(config, tiles, queries, done)))
    return found


def config_of(name: str) -> Self1EConfig:
    """Sizes of nano, of a published model, or with ``@N`` behind its name of one with N layers in each tower."""
    base, _, depth = name.partition("@")
    return (
        published_config(base, int(depth) if depth else None) if base in SIZES else Self1EConfig.from_pretrained(NANO)
    )


# --------------------------------------------------------------------------- the table


def as_markdown(models: Sequence[str], tiles: Sequence[int], queries: Sequence[int], peak: tuple[float, float]) -> str:
    """One line per model, tiles and queries."""
    lines = [
        f"Floor at {peak[0] / 1e12:.4g} TFLOP/s and {peak[1] / 1e12:.4g} TB/s.",
        "",
        "| model | tiles | queries | literal TFLOP | exact | attention=image | literal / exact | floor | per query |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in models:
        config = config_of(name)
        for number in tiles:
            for asked in queries:
                literal, exact, image = (operations(config, number, asked, way) for way in (LITERAL, EXACT, IMAGE))
                least = floor(count(config, number, asked), peak)
                lines.append(
                    f"| {name} | {number} | {asked} | {literal / 1e12:.4g} | {exact / 1e12:.4g} | {image / 1e12:.4g} "
                    f"| {literal / exact:.2f} | {1e3 * least:.3g} ms | {1e3 * least / asked:.3g} ms |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="InternVL3-2B,InternVL3-8B", help=f"nano, {', '.join(SIZES)}")
    parser.add_argument("--tiles", default="1,6,12")
    parser.add_argument("--queries", default="1,10,150")
    parser.add_argument("--peak-flops", type=float, default=H200[0], help="operations per second")
    parser.add_argument("--peak-bytes", type=float, default=H200[1], help="bytes per second")
    chosen = parser.parse_args()
    tiles, queries = ([int(value) for value in values.split(",")] for values in (chosen.tiles, chosen.queries))
    print(as_markdown(chosen.models.split(","), tiles, queries, (chosen.peak_flops, chosen.peak_bytes)))


if __name__ == "__main__":
    main()
