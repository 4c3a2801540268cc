"""Every stage of the model equals the published system's, on every case of the golden folder.

Where a grid of tiles is not square the published unshuffle is wrong (METHOD 3.4): there the ``fixed.`` values count,
and stages after the first unshuffle that have no ``fixed.`` value are left out. Id 0 counts as padding because the
published code takes it for padding; rows of padding are never read and not compared.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from self1e.model import Self1EForConditionalGeneration, mask_head
from self1e.model.checkpoints import reference_state_dict
from self1e.model.losses import LossWeights, bce_per_mask, dice_per_mask, loss_target, resize_logits
from self1e.model.mask_head import depth_to_space, stitch_tiles

TOLERANCE = 1e-4
AFTER_UNSHUFFLE = {
    *("residual", "hq_unshuffled", "fused_pre", "fused_post", "mask_logits", "mask_logits_low"),
    *("pred_mask", "loss_logits_high", "loss_logits_low"),
}
FLAT_TOKENS = {"F_IMG", "img_mlp_all", "vit_mlp_ori"}
IMPLEMENTATIONS = ["eager", "sdpa"]


pytestmark = pytest.mark.usefixtures("one_thread")


# --------------------------------------------------------------------------- one case


@dataclass
class Case:
    """A golden case: what went in and what came out."""

    config: dict[str, Any]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    losses: dict[str, Any]
    model: Self1EForConditionalGeneration

    @property
    def tile_grids(self) -> list[tuple[int, int]]:
        """Rows and columns per sequence."""
        return [tuple(sequence["grid_cols_rows"][::-1]) for sequence in self.config["sequences"]]

    @property
    def is_square(self) -> bool:
        return all(rows == columns for rows, columns in self.tile_grids)

    @property
    def is_real(self) -> Tensor:
        return self.inputs["input_ids"] != 0

    @property
    def targets(self) -> list[Tensor]:
        empty = torch.zeros(0, 1, 1)
        return [self.inputs.get(f"gt_mask.{row}", empty) for row in range(len(self.tile_grids))]

    @property
    def batch(self) -> dict[str, Any]:
        """What the model is called with."""
        rest = {name: self.inputs[name] for name in ("input_ids", "pixel_values", "position_ids")}
        return {**rest, "attention_mask": self.is_real, "tile_grids": self.tile_grids}

    @property
    def supervision(self) -> dict[str, Any]:
        return {"labels": self.inputs["labels"], "mask_targets": self.targets}


@lru_cache
def load(case: Path, implementation: str) -> Case:
    config = json.loads((case / "config.json").read_text(encoding="utf-8"))
    inputs, outputs = load_file(case / "inputs.safetensors"), load_file(case / "outputs.safetensors")
    losses = json.loads((case / "losses.json").read_text(encoding="utf-8"))
    published = {**config["model_config"], "model_type": "internvl_chat", "architectures": [config["reference_class"]]}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(published), encoding="utf-8")
        shutil.copy(case / config["weights"], Path(folder) / "model.safetensors")
        model = Self1EForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=implementation
        )
    weights = config["loss_weights"]
    model.loss_weights = LossWeights(
        text=weights["ce_loss_weight"], bce=weights["bce_loss_weight"], dice=weights["dice_loss_weight"]
    )
    return Case(config, inputs, outputs, losses, model)


# --------------------------------------------------------------------------- what we compute


@dataclass
class Calls:
    """What went into and came out of one module, call by call."""

    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)

    def output_for(self, wanted: Tensor) -> Tensor:
        """The output of the call that got ``wanted``."""
        return next(out for got, out in zip(self.inputs, self.outputs, strict=True) if got is wanted)


class Recorder:
    """Watches modules, and `upsample`, which sees the residual before it grows."""

    def __init__(self, **modules: nn.Module) -> None:
        self.calls = {name: Calls() for name in (*modules, "upsample")}
        self.hooks = [m.register_forward_hook(self._watch(n), with_kwargs=True) for n, m in modules.items()]
        self.patch = mock.patch.object(mask_head, "upsample", self._upsample)
        self.original = mask_head.upsample

    def _watch(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.calls[name].inputs.append(args[0] if args else kwargs)
            self.calls[name].outputs.append(output)

        return hook

    def _upsample(self, x: Tensor, shape_hw: tuple[int, int]) -> Tensor:
        self.calls["upsample"].inputs.append(x)
        return self.original(x, shape_hw)

    def __enter__(self) -> Recorder:
        self.patch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.patch.stop()
        for hook in self.hooks:
            hook.remove()


@torch.no_grad()
def compute(case: Case) -> dict[str, Tensor]:
    """Every stage under its golden name; maps where the golden file has flat tokens."""
    model, inner, head = case.model, case.model.model, case.model.mask_head
    vision_tower, language = inner.vision_tower, inner.language_model
    watched = {
        "embeddings": vision_tower.embeddings,
        "vision_block": vision_tower.encoder.layer[0],
        "vision_tower": vision_tower,
        "language": language,
        "block": language.layers[0],
        "norm": language.norm,
        "head": head,
        "expand_vision": head.expand_vision,
        "expand_language": head.expand_language,
        "final_mlp": head.final_mlp,
    }
    batch = case.batch
    logits = model(**batch).logits
    with Recorder(**watched) as recorder:
        vision = model.encode_pictures(batch.pop("pixel_values"), batch.pop("tile_grids"))
        result = model(**batch, vision=vision, **case.supervision)
    calls = recorder.calls
    labelled = torch.zeros_like(case.is_real)
    labelled[:, :-1] = case.inputs["labels"][:, 1:] != -100
    found = {
        "vit.embeddings": calls["embeddings"].outputs[0],
        "vit.block0": calls["vision_block"].outputs[0],
        "vit.cls": calls["vision_tower"].outputs[0].last_hidden_state[:, :1],
        "F_V0": vision.patches,
        "F_V1": vision.coarse,
        "F_V1_HQ": vision.fine,
        "llm.inputs_embeds": calls["language"].inputs[0]["inputs_embeds"],
        "llm.block0": calls["block"].outputs[0],
        "llm.last_prenorm": calls["norm"].inputs[0],
        "llm.last": result.last_hidden_state,
        "logits": logits,
        "logits_labelled": logits[labelled],
    }
    groups: dict[tuple[int, int], list[int]] = {}
    for row, target in enumerate(case.targets):
        if len(target):
            groups.setdefault(case.tile_grids[row], []).append(row)
    assert len(groups) == len(calls["head"].inputs)  # rows of one grid go through the head together
    for group, rows in enumerate(groups.values()):
        stages = head_stages(calls, group)
        segs = iter(range(len(stages["F_SEG"])))
        for index, row in enumerate(rows):
            own = [next(segs) for _ in case.targets[row]]
            for name, value in stages.items():
                is_per_seg = name in ("F_SEG", "seg_mlp_all", "seg_mean", "seg_final")
                found[f"s{row}.{name}"] = value[own] if is_per_seg else value[index]
    for row, target in enumerate(case.targets):
        if not len(target):
            assert len(result.mask_logits[row]) == 0 if result.mask_logits else True
            continue
        small = loss_target(target)
        high, low = result.mask_logits[row], result.low_resolution_logits[row]
        found |= {
            f"s{row}.mask_logits": high,
            f"s{row}.mask_logits_low": low,
            f"s{row}.pred_mask": resize_logits(high, target.shape[1:]),
            f"s{row}.loss_target": small,
            f"s{row}.loss_logits_high": resize_logits(high, small.shape[1:]),
            f"s{row}.loss_logits_low": resize_logits(low, small.shape[1:]),
        }
    return found


def head_stages(calls: dict[str, Calls], group: int) -> dict[str, Tensor]:
    """The stages of one run of the mask head, rows first."""
    given = calls["head"].inputs[group]
    fine, seg = given["fine"], given["seg"]
    hq_mlp = calls["expand_vision"].output_for(fine)
    language_calls, final_calls = calls["expand_language"], calls["final_mlp"]
    seg_mlp = language_calls.output_for(seg)
    seg_index = [i for i, x in enumerate(final_calls.inputs) if x.ndim == 2][group]
    maps = [i for i, x in enumerate(final_calls.inputs) if x.ndim == 4 and x.shape[1:3] == double(fine.shape[1:3])]
    fused = next(i for i in maps if len(final_calls.inputs[i]) == len(given["coarse_out"]))
    residual = next(
        x
        for x in calls["upsample"].inputs
        if x.shape[:3] == (len(given["coarse_out"]), *double(given["coarse_in"].shape[1:3]))
    )
    return {
        "F_IMG": given["coarse_out"],
        "F_SEG": seg,
        "img_mlp_all": language_calls.output_for(given["coarse_out"]),
        "img_mlp_all_map": language_calls.output_for(given["coarse_out"]),
        "vit_mlp_ori": calls["expand_vision"].output_for(given["coarse_in"]),
        "vit_mlp_ori_map": calls["expand_vision"].output_for(given["coarse_in"]),
        "residual": residual,
        "hq_map": fine,
        "hq_mlp_ori": hq_mlp,
        "hq_unshuffled": depth_to_space(hq_mlp, 2),
        "fused_pre": final_calls.inputs[fused],
        "fused_post": final_calls.outputs[fused],
        "seg_mlp_all": seg_mlp,
        "seg_mean": final_calls.inputs[seg_index],
        "seg_final": final_calls.outputs[seg_index],
    }


def double(shape_hw: torch.Size) -> tuple[int, int]:
    return (2 * shape_hw[0], 2 * shape_hw[1])


# --------------------------------------------------------------------------- comparing


def distance(case: Case, name: str, ours: Tensor) -> float:
    """The largest absolute difference from the golden value ``name``, where it counts."""
    theirs = case.outputs[name]
    stage = name.split(".")[-1]
    if stage == "pred_mask":
        wrong = ((ours > 0) != theirs.bool()) & (ours.abs() >= TOLERANCE)
        return math.inf if wrong.any() else 0.0
    if stage in FLAT_TOKENS:
        row = int(name.split(".")[-2].removeprefix("s"))
        rows, columns = case.tile_grids[row]
        tokens = theirs.reshape(rows * columns, -1, theirs.shape[-1])
        side = math.isqrt(tokens.shape[1])
        theirs = stitch_tiles(tokens.unflatten(1, (side, side)), rows, columns)
    if name.startswith("llm.") or name == "logits":
        ours, theirs = ours[case.is_real], theirs[case.is_real]
    if name == "logits_labelled":
        labelled = case.inputs["labels"][:, 1:] != -100
        is_real = case.is_real[:, :-1][labelled]
        ours, theirs = ours[is_real], theirs[is_real]
    assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
    return (ours - theirs).abs().max().item()


def is_superseded(case: Case, name: str) -> bool:
    """True for a value that holds the published unshuffle's mistake."""
    prefix, _, stage = name.partition(".")
    row = prefix.removeprefix("s")
    if stage not in AFTER_UNSHUFFLE or not row.isdigit():
        return False
    rows, columns = case.tile_grids[int(row)]
    return rows != columns


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_stage_equals_the_published_one(case, implementation):
    golden = load(case, implementation)
    found = compute(golden)
    errors = {}
    for name in golden.outputs:
        if name == "generated_ids" or is_superseded(golden, name):
            continue
        if name.endswith("seg_source_positions"):
            row = int(name.split(".")[0].removeprefix("s"))
            read = found["llm.last"][row][golden.outputs[name]]
            assert torch.equal(read, found[f"s{row}.F_SEG"]), f"{name}: F_SEG is read elsewhere"
            continue
        errors[name] = distance(golden, name, found[name.removeprefix("fixed.")])
    assert errors
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE} == {}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch
def test_flex_attention_gives_the_same_masks(golden):
    folders = sorted(path.parent for path in golden.glob("cases/*/config.json"))
    case = max((load(path, "eager") for path in folders), key=lambda case: sum(map(len, case.targets)))
    path = next(path for path in folders if load(path, "eager") is case)
    flexible = load(path, "flex_attention")
    with torch.compiler.set_stance("force_eager"):  # a compiler is not what is tested
        found = compute(flexible)
    names = [name for name in case.outputs if name in found and not is_superseded(case, name)]
    errors = {name: distance(flexible, name, found[name]) for name in names}
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE} == {}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_losses_equal_the_published_ones(case, implementation):
    golden = load(case, implementation)
    expected = golden.losses["corrected_unshuffle"] or golden.losses["reference"]
    with torch.no_grad():
        result = golden.model(**golden.batch, **golden.supervision)
    weights = golden.model.loss_weights
    found = {
        "loss": result.loss,
        "ce_loss": result.losses["text"],
        "mask_bce_loss": result.losses["bce"],
        "mask_dice_loss": result.losses["dice"],
        "mask_loss": weights.bce * result.losses["bce"] + weights.dice * result.losses["dice"],
        "other_loss": 0.0,
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {name: value for name, value in expected.items() if name != "per_sequence"}, abs=TOLERANCE
    )
    for row, parts in enumerate(expected["per_sequence"]):
        target = loss_target(golden.targets[row])
        if parts is None:
            assert len(target) == 0
            continue
        high = resize_logits(result.mask_logits[row], target.shape[1:])
        low = resize_logits(result.low_resolution_logits[row], target.shape[1:])
        own = {
            "bce_high": bce_per_mask(high, target).sum().item(),
            "dice_high": dice_per_mask(high, target).sum().item(),
            "bce_low": bce_per_mask(low, target).sum().item(),
            "dice_low": dice_per_mask(low, target).sum().item(),
        }
        assert own == pytest.approx({name: parts[name] for name in own}, abs=TOLERANCE)
        assert list(target.shape[1:]) == parts["target_hw"]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_equal_the_published_ones(case, implementation):
    golden = load(case, implementation)
    if not golden.is_square:
        pytest.skip("the published gradients hold the wrong unshuffle of a grid that is not square")
    expected = json.loads((case / "grad_norms.json").read_text(encoding="utf-8"))
    golden.model.zero_grad()
    golden.model(**golden.batch, **golden.supervision).loss.backward()
    none = float("nan")
    ours = {n: torch.full_like(p, none) if p.grad is None else p.grad for n, p in golden.model.named_parameters()}
    found = {name: grad.norm().item() for name, grad in reference_state_dict(golden.model, ours).items()}
    golden.model.zero_grad()
    expected = {name: none if norm is None else norm for name, norm in expected.items()}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6, nan_ok=True)  # nan: no gradient at all


def test_a_picture_is_encoded_once_for_all_its_rows(case):
    golden = load(case, "sdpa")
    batch = golden.batch
    pictures = [sequence["image"] for sequence in golden.config["sequences"]]
    tiles = batch["pixel_values"].split([rows * columns for rows, columns in golden.tile_grids])
    first_row = {picture: pictures.index(picture) for picture in sorted(set(pictures))}
    shared = {
        **batch,
        "pixel_values": torch.cat([tiles[row] for row in first_row.values()]),
        "tile_grids": [golden.tile_grids[row] for row in first_row.values()],
        "picture_of_row": [list(first_row).index(picture) for picture in pictures],
    }
    with torch.no_grad():
        found = golden.model(**shared, **golden.supervision)
        repeated = golden.model(**batch, **golden.supervision)
    torch.testing.assert_close(found.mask_logits, repeated.mask_logits, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(found.low_resolution_logits, repeated.low_resolution_logits, rtol=0, atol=TOLERANCE)
    expected = golden.losses["corrected_unshuffle"] or golden.losses["reference"]
    assert found.loss.item() == pytest.approx(expected["loss"], abs=TOLERANCE)


def test_generated_text_equals_the_published_one(case):
    golden = load(case, "sdpa")
    if "generated_ids" not in golden.outputs:
        pytest.skip("this case generates no text")
    expected = golden.outputs["generated_ids"]
    answer = (golden.inputs["labels"][0] != -100).nonzero()[0, 0]  # right after "<|im_start|>assistant\n"
    prompt = golden.inputs["input_ids"][:1, :answer]
    rows, columns = golden.tile_grids[0]
    end = golden.config["token_ids"]["<|im_end|>"]
    found = golden.model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        pixel_values=golden.inputs["pixel_values"][: rows * columns],
        tile_grids=[(rows, columns)],
        do_sample=False,
        max_new_tokens=expected.shape[1],
        eos_token_id=end,
        pad_token_id=end,
    )
    assert found[:, prompt.shape[1] :].tolist() == expected.tolist()


def test_all_tensors_come_back_under_the_published_names(case):
    golden = load(case, "eager")
    published = load_file(case / golden.config["weights"])
    found = reference_state_dict(golden.model)
    assert found.keys() == published.keys()
    assert [name for name in published if not torch.equal(found[name], published[name])] == []
