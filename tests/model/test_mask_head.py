"""The mask head: where features go, and what each row of the paper's tables computes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from self1e.model.mask_head import (
    MaskHead,
    depth_to_space,
    replicate,
    scan,
    space_to_depth,
    stitch_tiles,
    upsample,
)

D, H, W, S = 16, 2, 3, 2  # width, coarse map of two by three tokens, compression


def features(rows=2, pictures=2):
    """Features of ``rows`` queries over ``pictures`` pictures, one [SEG] each."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "fine": random(pictures, S * H, S * W, D),
        "coarse_in": random(pictures, H, W, D),
        "coarse_out": random(rows, H, W, D),
        "seg": random(rows, D),
        "picture_of_row": torch.arange(rows) % pictures,
        "row_of_seg": torch.arange(rows),
    }


def head(tiny, **switches):
    torch.manual_seed(1)
    module = MaskHead(tiny.tiny_config(**switches))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module


def logits_of(pixels, query):
    return torch.einsum("khwd,kd->khw", pixels, query) / D**0.5


# --------------------------------------------------------------------------- space and depth


def test_compression_takes_the_neighbours_of_the_drawing():
    """METHOD 3.1: sixteen patches, row-major, become four tokens."""
    patches = torch.arange(16).reshape(4, 4, 1)
    drawing = [[[0, 1, 4, 5], [2, 3, 6, 7]], [[8, 9, 12, 13], [10, 11, 14, 15]]]
    assert space_to_depth(patches, 2).tolist() == drawing


def test_expansion_is_right_on_a_grid_that_is_not_square():
    """METHOD 3.4: value = 4*(3*row + column) + chunk, two rows, three columns."""
    drawing = """
         0  1  4  5  8  9
         2  3  6  7 10 11
        12 13 16 17 20 21
        14 15 18 19 22 23
    """
    expected = [[int(value) for value in line.split()] for line in drawing.strip().splitlines()]
    assert depth_to_space(torch.arange(24).reshape(2, 3, 4), 2)[..., 0].tolist() == expected


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 3), (3, 1), (1, 1), (4, 4)])
def test_expansion_undoes_compression(scale, shape):
    x = torch.randn(5, shape[0] * scale, shape[1] * scale, 7)
    assert torch.equal(depth_to_space(space_to_depth(x, scale), scale), x)


def test_tiles_are_laid_row_by_row():
    tiles = torch.arange(6).reshape(6, 1, 1, 1).expand(6, 1, 2, 1)
    assert stitch_tiles(tiles, 2, 3)[..., 0].tolist() == [[0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5]]


def test_replicating_repeats_the_whole_vector():
    assert replicate(torch.tensor([[1, 2], [3, 4]]), 3).tolist() == [[1, 2, 1, 2, 1, 2], [3, 4, 3, 4, 3, 4]]


def test_scanning_takes_windows_with_stride_one_and_repeats_the_edge():
    patches = torch.arange(6).reshape(2, 3, 1)  # 0 1 2 / 3 4 5
    drawing = [[[0, 1, 3, 4], [1, 2, 4, 5], [2, 2, 5, 5]], [[3, 4, 3, 4], [4, 5, 4, 5], [5, 5, 5, 5]]]
    assert scan(patches, 2).tolist() == drawing


def test_scanning_starts_as_compression_does():
    x = torch.randn(2, 4, 6, 5)
    assert torch.equal(scan(x, 2)[:, ::2, ::2], space_to_depth(x, 2))


# --------------------------------------------------------------------------- the tables of the paper


def table_rows():
    """Per switches, the pixels and the query by hand, from the head's own parts (before the final MLP)."""

    def coarse_only(h, x):
        return x["coarse_out"], x["seg"]

    def fine_only(h, x):
        return x["fine"], x["seg"]

    def refilled(h, x):
        return x["fine"] + upsample(x["coarse_out"] - x["coarse_in"], (S * H, S * W)), x["seg"]

    def unfolded(h, x):
        return h.expand_language.unfold(x["coarse_out"]), h.expand_language.mean(x["seg"])

    def part_unfolded(h, x):
        return x["fine"] + h.expand_language.unfold(x["coarse_out"] - x["coarse_in"]), x["seg"]

    def amplified(h, x, vision, fine):
        residual = h.expand_language.unfold(x["coarse_out"]) - vision.unfold(x["coarse_in"])
        pixels = fine.unfold(x["fine"]) + upsample(residual, (S * S * H, S * S * W))
        return pixels, h.expand_language.mean(x["seg"])

    def one(h, x):
        return amplified(h, x, h.expand_language, h.expand_language)

    def two(h, x):
        return amplified(h, x, h.expand_vision, h.expand_vision)

    def three(h, x):
        return amplified(h, x, h.expand_vision, h.expand_fine)

    def fine_unfolded(h, x):
        return h.expand_vision.unfold(x["fine"]), h.expand_language.mean(x["seg"])

    return {
        "table 5 row 1": ({"fine": "none", "unshuffle": "none"}, coarse_only),
        "table 5 row 2": ({"residual": False, "unshuffle": "none"}, fine_only),
        "table 5 row 3, table 6 row 1": ({"unshuffle": "none"}, refilled),
        "table 5 row 4": ({"fine": "none"}, unfolded),
        "table 6 row 2": ({"unshuffle": "residual_only"}, part_unfolded),
        "table 6 row 3": ({"unshuffle": "one"}, one),
        "table 6 row 4, SELF1E": ({}, two),
        "table 6 row 5": ({"unshuffle": "three"}, three),
        "no residual": ({"residual": False}, fine_unfolded),
        "table 5 row 4 with one MLP": ({"fine": "none", "unshuffle": "one"}, unfolded),
    }


@pytest.mark.parametrize("final_mlp", [False, True])
@pytest.mark.parametrize("row", table_rows())
def test_every_table_row_computes_its_formula(tiny, row, final_mlp):
    switches, formula = table_rows()[row]
    module, x = head(tiny, final_mlp=final_mlp, **switches), features()
    pixels, query = formula(module, x)
    if final_mlp:
        pixels, query = module.final_mlp(pixels), module.final_mlp(query)
    if switches.get("fine") == "none":
        x["fine"] = None
    torch.testing.assert_close(module(**x).mask_logits, logits_of(pixels, query))


@pytest.mark.parametrize("auxiliary", ["off", "plain", "through_final_mlp"])
@pytest.mark.parametrize("row", table_rows())
def test_gradient_reaches_every_parameter(tiny, row, auxiliary):
    module = head(tiny, auxiliary_low_resolution=auxiliary, **table_rows()[row][0])
    module(**features(), with_auxiliary=False).mask_logits.square().sum().backward()
    dead = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []  # otherwise: built in __init__, never used in forward


def test_an_llm_that_changes_nothing_refills_nothing(tiny):
    module, x = head(tiny), features()
    module.expand_vision.load_state_dict(module.expand_language.state_dict())
    x["coarse_out"] = x["coarse_in"]
    found = module(**x).mask_logits
    module.residual = False
    torch.testing.assert_close(found, module(**x).mask_logits)


def test_rows_that_share_a_picture_equal_rows_with_a_copy_each(tiny):
    module, x = head(tiny), features(rows=3, pictures=2)
    copies = {**x, "picture_of_row": torch.arange(3)}
    copies |= {name: x[name][x["picture_of_row"]] for name in ("fine", "coarse_in")}
    torch.testing.assert_close(module(**x).mask_logits, module(**copies).mask_logits)


def test_several_seg_of_one_row_are_scored_apart(tiny):
    module, x = head(tiny), features(rows=2)
    alone = module(**x).mask_logits
    twice = {**x, "seg": x["seg"][[0, 1, 1]], "row_of_seg": torch.tensor([0, 1, 1])}
    torch.testing.assert_close(module(**twice).mask_logits, alone[[0, 1, 1]])
    torch.testing.assert_close(module(**{**x, "row_of_seg": None}).mask_logits, alone)


@pytest.mark.parametrize(("switch", "through"), [("plain", False), ("through_final_mlp", True)])
def test_the_auxiliary_mask_shows_the_llm_alone(tiny, switch, through):
    module, x = head(tiny, auxiliary_low_resolution=switch), features()
    pixels = module.expand_language.unfold(x["coarse_out"])
    pixels = module.final_mlp(pixels) if through else pixels
    query = module.final_mlp(module.expand_language.mean(x["seg"]))
    found = module(**x, with_auxiliary=True).low_resolution_logits
    torch.testing.assert_close(found, logits_of(pixels, query))
    assert found.shape == (2, S * H, S * W)


def test_no_auxiliary_mask_unless_asked_for(tiny):
    assert head(tiny)(**features()).low_resolution_logits is None
    assert head(tiny, auxiliary_low_resolution="off")(**features(), with_auxiliary=True).low_resolution_logits is None


@pytest.mark.parametrize("tokens", [4, 9])
def test_several_tokens_per_query_are_sub_pixels(tiny, tokens):
    side = round(tokens**0.5)
    module, x = head(tiny, num_seg_tokens=tokens), features()
    x["seg"], x["row_of_seg"] = torch.randn(2 * tokens, D), torch.arange(2).repeat_interleave(tokens)
    found = module(**x).mask_logits
    single = head(tiny)
    for row in range(2):
        for token in range(tokens):
            alone = {**x, "seg": x["seg"][[row * tokens + token]], "row_of_seg": torch.tensor([row])}
            expected = single(**alone).mask_logits[0]
            torch.testing.assert_close(found[row, token // side :: side, token % side :: side], expected)


def test_upsampling_is_the_published_one():
    x = torch.randn(2, 3, 4, 5)
    expected = F.interpolate(x.movedim(-1, 1), scale_factor=2, mode="bilinear", align_corners=False).movedim(1, -1)
    torch.testing.assert_close(upsample(x, (6, 8)), expected)


# --------------------------------------------------------------------------- with gradients


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"residual": False},
        {"fine": "none"},
        {"unshuffle": "none"},
        {"unshuffle": "residual_only"},
        {"unshuffle": "one"},
        {"unshuffle": "three"},
        {"final_mlp": False},
        {"auxiliary_low_resolution": "through_final_mlp"},
    ],
    ids=lambda switches: "-".join(map(str, switches.values())) or "published",
)
def test_the_order_of_training_changes_neither_logits_nor_gradients(tiny, monkeypatch, switches):
    module = head(tiny, **switches).double()

    def run(with_gradients):
        # The head asks whether gradients are wanted to choose its order; both orders have gradients here.
        monkeypatch.setattr("self1e.model.mask_head.torch.is_grad_enabled", lambda: with_gradients)
        given = {
            name: x.double().requires_grad_() if x.is_floating_point() else x
            for name, x in features(rows=3, pictures=2).items()
        }
        out = module(**given, with_auxiliary=True)
        weights = torch.linspace(-1, 1, out.mask_logits.numel(), dtype=torch.float64).reshape(out.mask_logits.shape)
        wanted = [*module.parameters(), *(x for x in given.values() if x.requires_grad)]
        total = (out.mask_logits * weights).sum() + out.low_resolution_logits.square().sum()
        return [out.mask_logits, *torch.autograd.grad(total, wanted, allow_unused=True)]

    for plain, lean in zip(run(False), run(True), strict=True):
        assert (plain is None) == (lean is None)
        if plain is not None:
            torch.testing.assert_close(lean, plain, rtol=1e-9, atol=1e-9)
