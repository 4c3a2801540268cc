"""What one training step costs: ours against the published step taken literally.

    python benchmarks/training.py                      # 1B on this machine; docs/results/training.md and .json
    python benchmarks/training.py --layers 2 --dtype float32
    python benchmarks/training.py --size 2b --device cuda --dtype bfloat16 --attention flex

One picture of one tile, three queries, the published trainable set (LoRA on both towers, whole embeddings, lm_head,
projector and mask head), random weights, forward, backward and AdamW. Literal is what the published code does: eager
attention under a dense additive mask, the picture encoded once per query, scores of the whole vocabulary at every
position, the mask head row by row, every layer's states kept. Both take turns on the same weights (the learning rate is
0, so that they stay), and their losses must be equal. Dropout is off, or they could not be.

Memory is the peak of a step above parameters and optimizer state, so it includes gradients; the rest is the same for
both. On a CPU it is what the process holds; ours gives freed memory back between the towers, as our training does.
Operations are those of the same step, counted on the meta device, which has no numbers.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import (
    AFTER,
    BEFORE,
    NANO,
    REST,
    ROOT,
    Peak,
    facts,
    operations,
    published_config,
    random_model,
    timed,
)
from literal import literal_masks
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from self1e.model import Self1EConfig, Self1EForConditionalGeneration
from self1e.model.attention import dual_perception_attention_mask
from self1e.model.losses import mask_losses
from self1e.training.adapters import attach_adapters
from self1e.training.recipes.settings import AdapterSettings
from self1e.training.releasing import release_between_towers

SIZES = {"nano": ("nano", 16), "1b": ("InternVL3-1B", 128), "2b": ("InternVL3-2B", 128), "8b": ("InternVL3-8B", 64)}
"""Base model and LoRA rank."""
ANSWER = 5
"""Labelled tokens up to and behind [SEG]: "It is [SEG]." and the end of the turn, without the last newline."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 5e-2}
"""How far losses may be apart, relative: both paths round differently."""
Batch = dict[str, Any]


# --------------------------------------------------------------------------- one step, two ways


def config_of(name: str, depth: int | None = None) -> Self1EConfig:
    """Sizes of a published base model, or those of `nano`."""
    return Self1EConfig.from_pretrained(NANO) if name == "nano" else published_config(name, depth)


def make_model(config: Self1EConfig, device: str, dtype: torch.dtype, rank: int) -> Self1EForConditionalGeneration:
    """Make a random model that is trained as published, without dropout."""
    model = random_model(config, device, dtype)
    with torch.device(device):
        attach_adapters(model, AdapterSettings(rank=rank, dropout=0.0))
    return model.to(dtype).train()


def make_batch(config: Self1EConfig, queries: int, device: str, dtype: torch.dtype) -> Batch:
    """One picture of noise and as many queries of random words, each with a mask of its own."""
    random = torch.Generator().manual_seed(0)
    special = {config.image_token_id, config.seg_token_id}
    words = torch.tensor([token for token in range(1, min(200, config.text_config.vocab_size)) if token not in special])

    def say(length: int) -> list[int]:
        return words[torch.randint(len(words), (length,), generator=random)].tolist()

    image = [config.image_token_id] * config.image_seq_length
    before = say(BEFORE)
    rows = [[*before, *image, *say(AFTER - 1), config.seg_token_id, *say(REST)] for _ in range(queries)]
    ids = torch.tensor(rows)
    labels = torch.full_like(ids, -100)
    labels[:, -ANSWER - 1 : -1] = ids[:, -ANSWER - 1 : -1]
    side = config.tile_size
    # Ids stay where numbers are even if the model is on the meta device.
    where = "cpu" if device == "meta" else device
    return {
        "input_ids": ids.to(where),
        "labels": labels.to(where),
        "pixel_values": torch.randn(1, 3, side, side, generator=random).to(device, dtype),
        "tile_grids": [(1, 1)],
        "picture_of_row": [0] * queries,
        "mask_targets": [
            (torch.rand(1, side, side, generator=random) > 0.5).to(device, torch.float32) for _ in range(queries)
        ],
    }


def our_loss(model: Self1EForConditionalGeneration, batch: Batch) -> Tensor:
    """Our forward."""
    loss = model(**batch).loss
    assert loss is not None
    return loss


def literal_loss(model: Self1EForConditionalGeneration, batch: Batch) -> Tensor:
    """The published forward, from the same modules (METHOD sections 3 to 6 and 8)."""
    ids, labels, queries = batch["input_ids"], batch["labels"], len(batch["input_ids"])
    config, text = model.config, model.model.language_model
    is_image, is_seg = ids == config.image_token_id, ids == config.seg_token_id
    vision = model.encode_pictures(batch["pixel_values"].repeat(queries, 1, 1, 1), [(1, 1)] * queries)
    embeddings = model.get_input_embeddings()(ids)
    embeddings = embeddings.masked_scatter(is_image[..., None].to(embeddings.device), vision.coarse)
    allowed = dual_perception_attention_mask(is_image, is_seg, torch.ones_like(is_image))
    dense = torch.zeros(allowed.shape, dtype=model.dtype, device=ids.device).masked_fill(~allowed, -torch.inf)
    outputs = text(
        inputs_embeds=embeddings,
        attention_mask=dense[:, None].to(embeddings.device),
        position_ids=torch.arange(ids.shape[1], device=embeddings.device)[None].expand(queries, -1),
        use_cache=False,
        output_hidden_states=True,
    )
    hidden = outputs.last_hidden_state
    scores = model.lm_head(hidden)[:, :-1].contiguous()
    loss = model.loss_weights.text * F.cross_entropy(scores.flatten(0, 1), labels[:, 1:].flatten().to(scores.device))
    assert vision.fine is not None
    side = config.patches_per_side // config.compression
    for row in range(queries):
        high, low = literal_masks(
            model.mask_head,
            fine=vision.fine[row].unflatten(0, (2 * side, 2 * side))[None],
            coarse_in=vision.coarse[row].unflatten(0, (side, side))[None],
            coarse_out=hidden[row][is_image[row]].unflatten(0, (side, side))[None],
            seg=hidden[row, :-1][is_seg[row, 1:]],
        )
        for logits in (high, low):
            bce, dice = mask_losses([logits], [batch["mask_targets"][row]])
            loss = loss + (model.loss_weights.bce * bce + model.loss_weights.dice * dice) / queries
    return loss


PATHS: dict[str, Callable[[Self1EForConditionalGeneration, Batch], Tensor]] = {
    "literal": literal_loss,
    "ours": our_loss,
}


def prepare(model: Self1EForConditionalGeneration, path: str, attention: str, checkpointing: bool) -> None:
    """Set attention and gradient checkpointing of the next step."""
    ours = {"text_config": "flex_attention" if attention == "flex" else attention, "vision_config": "sdpa"}
    model.set_attn_implementation("eager" if path == "literal" else ours)
    verb = "enable" if checkpointing else "disable"
    # Renamed in transformers 5.2x; we support both.
    switch = getattr(model, f"activation_checkpointing_{verb}", None) or getattr(
        model, f"gradient_checkpointing_{verb}"
    )
    switch(*([{"use_reentrant": False}] if checkpointing else []))


# --------------------------------------------------------------------------- seconds and bytes


def measure(
    model: Self1EForConditionalGeneration, batch: Batch, repeats: int, attention: str, checkpointing: bool
) -> list[dict[str, Any]]:
    """Take steps in turns; the first of each wakes everything and is not counted."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    device = trained[0].device
    seconds: dict[str, list[float]] = {path: [] for path in PATHS}
    peaks: dict[str, list[int]] = {path: [] for path in PATHS}
    losses: dict[str, float] = {}

    def step(path: str) -> float:
        loss = PATHS[path](model, batch)
        loss.backward()
        optimizer.step()
        return loss.item()

    for repeat in range(repeats + 1):
        for path in PATHS:
            prepare(model, path, attention, checkpointing)
            hooks = release_between_towers(model, device) if path == "ours" else []
            optimizer.zero_grad(set_to_none=True)
            gc.collect()
            with Peak(device) as peak:
                losses[path], took = timed(lambda path=path: step(path), device)
            print(f"{path}: {took:.1f} s, {peak.bytes / 1e6:.0f} MB, loss {losses[path]:.6f}", flush=True)
            if repeat or not repeats:
                seconds[path].append(took)
                peaks[path].append(peak.bytes)
            for hook in hooks:
                hook.remove()
        check_equal(losses, trained[0].dtype)
    optimizer.zero_grad(set_to_none=True)
    fixed = sum(p.numel() * p.element_size() for p in model.parameters())
    fixed += sum(x.numel() * x.element_size() for state in optimizer.state.values() for x in state.values())
    return [
        {
            "path": path,
            "checkpointing": checkpointing,
            "loss": losses[path],
            "seconds": statistics.median(seconds[path]),
            "spread": [min(seconds[path]), max(seconds[path])],
            "peak_bytes": int(statistics.median(peaks[path])),
            "gradient_bytes": sum(p.numel() * p.element_size() for p in trained),
            "fixed_bytes": fixed,
        }
        for path in PATHS
    ]


def check_equal(losses: dict[str, float], dtype: torch.dtype) -> None:
    """Refuse to compare steps that compute different things."""
    apart = abs(losses["ours"] / losses["literal"] - 1)
    if not apart <= TOLERANCE[dtype]:
        raise AssertionError(f"The losses differ: {losses}, {apart:.1e} relative, allowed {TOLERANCE[dtype]:.0e}.")


# --------------------------------------------------------------------------- counted without numbers


class FollowToMeta(TorchFunctionMode):
    """Let a forward that reads its token ids run on a model without numbers.

    Ids are real. A choice by a real bool tensor becomes one by indices, whose number is known.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor:  # made of numbers we know
            kwargs.pop("device", None)
        if func is Tensor.__getitem__ and args[0].is_meta:
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(map(_is_real_choice, indices)):
                flat = [p for i in indices for p in (i.nonzero(as_tuple=True) if _is_real_choice(i) else (i,))]
                return args[0][tuple(p.to("meta") if isinstance(p, Tensor) else p for p in flat)]
        return func(*args, **kwargs)


def _is_real_choice(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and not index.is_meta


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))
    if attn_mask is not None:
        attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device="meta")
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, attn_mask=attn_mask, scale=kwargs.get("scale"))[0]


class ToMeta(TorchDispatchMode):
    """Real tensors that meet meta ones follow them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, spec = tree_flatten((args, kwargs or {}))
        if any(isinstance(x, Tensor) and x.is_meta for x in flat):
            flat = [x.to("meta") if isinstance(x, Tensor) else x for x in flat]
        args, kwargs = tree_unflatten(flat, spec)
        return func(*args, **kwargs)


def count(name: str, rank: int, depth: int | None, queries: int, checkpointing: bool) -> dict[str, Any]:
    """Count operations of forward and backward, both ways."""
    config = config_of(name, depth)
    model = make_model(config, "meta", torch.bfloat16, rank)
    batch = make_batch(config, queries, "meta", torch.bfloat16)
    row: dict[str, Any] = {"model": name, "queries": queries, "checkpointing": checkpointing}
    for path, loss_of in PATHS.items():
        prepare(model, path, "sdpa", checkpointing)
        # Attention takes a fused kernel, as it would with numbers; the mode does not reach what checkpoints recompute.
        fused = mock.patch.object(F, "scaled_dot_product_attention", _fused_attention)
        with ToMeta(), FollowToMeta(), fused:
            row[path] = operations(lambda loss_of=loss_of: loss_of(model, batch).backward())
        model.zero_grad(set_to_none=True)
    return row


# --------------------------------------------------------------------------- the table


def as_markdown(report: dict[str, Any]) -> str:
    """Write both tables."""
    lines = ["# Training: one step, ours against the published one taken literally", ""]
    lines += [
        f"Command: `{report['command']}`, commit {report['commit']}, {report['date']}. {report['hardware']}, "
        f"{report['threads']} thread(s), {report['dtype']}, torch {report['torch']}, transformers "
        f"{report['transformers']}. {report['model']} with random weights, "
        f"{report['layers'] or 'all'} layers per tower, one picture of one tile, {report['queries']} queries, "
        f"AdamW on the published trainable set, LoRA rank {report['rank']}. "
        "What the two ways are: [speed](../speed.md#training).",
        "",
    ]
    if report["measured"]:
        lines += [
            "Interleaved, equal losses, medians. Memory: peak of the step above parameters and optimizer state "
            "(gradients are part of it).",
            "",
            "| checkpointing | literal | ours | faster | bound by operations | memory, literal | ours | less | "
            "of it gradients | parameters and optimizer |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
    bounds = {row["checkpointing"]: row["literal"] / row["ours"] for row in report["counted"] if row["is_measured"]}
    for literal, ours in zip(report["measured"][::2], report["measured"][1::2], strict=True):
        bound = bounds.get(ours["checkpointing"])
        lines.append(
            f"| {'on' if ours['checkpointing'] else 'off'} | {literal['seconds']:.1f} s | {ours['seconds']:.1f} s "
            f"| {literal['seconds'] / ours['seconds']:.2f} x | {f'{bound:.2f} x' if bound else ''} "
            f"| {literal['peak_bytes'] / 1e6:.0f} MB | {ours['peak_bytes'] / 1e6:.0f} MB "
            f"| {literal['peak_bytes'] / max(ours['peak_bytes'], 1):.2f} x | {ours['gradient_bytes'] / 1e6:.0f} MB "
            f"| {ours['fixed_bytes'] / 1e6:.0f} MB |"
        )
    if report["counted"]:
        lines += [
            "",
            "## Operations",
            "",
            "TFLOP of forward and backward, counted on the meta device; attention as a dense kernel's, in both.",
            "",
            "| model | layers | queries | checkpointing | literal | ours | literal / ours |",
            "|---|---|---|---|---|---|---|",
        ]
    for row in report["counted"]:
        lines.append(
            f"| {row['model']} | {row['layers'] or 'all'} | {row['queries']} "
            f"| {'on' if row['checkpointing'] else 'off'} | {row['literal'] / 1e12:.4g} | {row['ours'] / 1e12:.4g} "
            f"| {row['literal'] / row['ours']:.2f} x |"
        )
    return "\n".join(lines) + "\n"


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure and count."""
    name, rank = SIZES[chosen.size]
    rank = chosen.rank or rank
    dtype = getattr(torch, chosen.dtype)
    report = facts(torch.device(chosen.device), dtype)
    report |= {"model": name, "layers": chosen.layers, "queries": chosen.queries, "rank": rank}
    report |= {"attention": chosen.attention, "measured": [], "counted": []}
    switches = [value == "on" for value in chosen.checkpointing.split(",")]
    if chosen.count:
        sizes = {name: rank}
        if chosen.size == "1b" and chosen.layers is None:
            sizes |= {other: its for other, its in SIZES.values() if other not in (name, "nano")}
        for model_name, its_rank in sizes.items():
            for switch in (True, False):
                row = count(model_name, its_rank, chosen.layers, chosen.queries, switch)
                report["counted"].append(row | {"layers": chosen.layers, "is_measured": model_name == name})
                print(json.dumps(report["counted"][-1]), flush=True)
    if chosen.measure:
        config = config_of(name, chosen.layers)
        model = make_model(config, chosen.device, dtype, rank)
        batch = make_batch(config, chosen.queries, chosen.device, dtype)
        for switch in switches:
            report["measured"] += measure(model, batch, chosen.repeats, chosen.attention, switch)
    return report


def main(arguments: list[str] | None = None) -> None:
    """Measure, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--layers", type=int, help="layers of each tower, if fewer than published")
    parser.add_argument("--queries", type=int, default=3)
    parser.add_argument("--rank", type=int, help="of LoRA, if not as published")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "flex", "eager"], help="of our step")
    parser.add_argument("--checkpointing", default="on", help="of the measured steps: on, off, or on,off")
    parser.add_argument("--count", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--measure", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/training", help="without ending")
    chosen = parser.parse_args(arguments)
    if chosen.size == "nano" and chosen.layers:
        parser.error("--layers is for the published sizes; nano has its own few layers.")
    report = run(chosen)
    chosen.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    chosen.out.with_suffix(".md").write_text(as_markdown(report))
    print(as_markdown(report))


if __name__ == "__main__":
    main()
