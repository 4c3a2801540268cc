"""Bucketing: less padding, and still the same items for everybody, with a mask in every micro-batch."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from self1e.data.epoch import Epoch
from self1e.data.mixture import Mixture, Part
from self1e.data.sample import Question, Sample, Target
from self1e.errors import SettingError
from self1e.training.batching import bucketed, deal, padding_share

MASK = np.ones((3, 4), bool)
SIZES_WH = ((40, 40), (40, 80), (120, 40))


def masked(count: int) -> list[Sample]:
    return [
        Sample(
            image=Image.new("RGB", SIZES_WH[n % 3]),
            targets=(Target(text="cup " * (1 + n % 4), mask=MASK),),
            source=f"masked/{n}",
        )
        for n in range(count)
    ]


def told(count: int) -> list[Sample]:
    return [
        Sample(
            image=Image.new("RGB", SIZES_WH[n % 3]),
            questions=(Question(text="What?", answer="long words " * (n % 40)),),
            source=f"told/{n}",
        )
        for n in range(count)
    ]


def epoch(batch_size: int = 5, counts: tuple[int, int] = (40, 133), **settings) -> Epoch:
    parts = {"masked": Part(samples=masked(counts[0])), "told": Part(samples=told(counts[1]))}
    return Epoch(parts, with_masks=["masked"], batch_size=batch_size, **settings)


def told_of(items, indices) -> list:
    return [(item.source, [row.turns for row in item.rows]) for item in map(items.__getitem__, indices)]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 6),
)
def test_every_batch_has_a_mask_as_far_as_there_are_any(items, size):
    lengths, has_mask = [length for length, _ in items], [masked for _, masked in items]
    sizes = [min(size, len(items) - start) for start in range(0, len(items), size)]
    batches = deal(lengths, has_mask, sizes)
    assert [len(batch) for batch in batches] == sizes
    assert sorted(item for batch in batches for item in batch) == list(range(len(items)))
    with_mask = sum(any(has_mask[item] for item in batch) for batch in batches)
    if sum(has_mask) >= len(batches):
        assert with_mask == len(batches)


def test_a_window_holds_the_items_that_it_held_and_no_other():
    plain = epoch(seed=2)
    ordered = bucketed(plain, window=8)
    assert len(ordered) == len(plain) == 173
    for first in range(0, 173, 40):
        window = range(first, min(first + 40, 173))
        assert sorted(map(ordered.original, window)) == list(window)
    assert [ordered.original(index) for index in range(173)] != list(range(173))


def test_every_micro_batch_still_has_a_mask_the_last_one_too():
    ordered = bucketed(epoch(seed=1), window=4)
    for first in range(0, len(ordered), 5):
        rows = [row for index in range(first, min(first + 5, len(ordered))) for row in ordered[index].rows]
        assert any(row.mask is not None for row in rows)


def test_item_i_is_the_same_whoever_asks_and_in_whatever_order():
    whole = told_of(bucketed(epoch()), range(173))
    # Four workers of two processes, each with its own copy, each asking for its own micro-batches.
    for start in range(4):
        copy = pickle.loads(pickle.dumps(bucketed(epoch())))
        indices = [i for batch in range(start, 35, 4) for i in range(5 * batch, min(5 * batch + 5, 173))]
        assert told_of(copy, indices) == [whole[index] for index in indices]
    # A run that goes on in the middle; and one that jumps about.
    assert told_of(bucketed(epoch()), range(85, 173)) == whole[85:]
    assert told_of(bucketed(epoch()), [170, 3, 90, 4]) == [whole[index] for index in (170, 3, 90, 4)]


def test_another_seed_epoch_or_window_is_another_order():
    def order(window: int = 32, **settings):
        ordered = bucketed(epoch(**settings), window=window)
        return [ordered.original(index) for index in range(160)]

    assert order() == order()
    assert len({tuple(order(**settings)) for settings in ({}, {"seed": 1}, {"epoch": 1}, {"window": 8})}) == 4


def test_micro_batches_of_a_window_come_in_no_order_of_length():
    ordered = bucketed(epoch())
    means = [np.mean([len(ordered[i].rows[0].answer) for i in range(5 * b, 5 * b + 5)]) for b in range(32)]
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)


def test_like_lengths_come_together_in_tiles_and_in_text():
    plain = epoch(seed=3)

    def padding(items, lengths):
        batches = [range(first, min(first + 5, 173)) for first in range(0, 173, 5)]
        return padding_share([[lengths(items[index]) for index in batch] for batch in batches])

    def letters(item):
        return 40 + max(len(row.question) + len(row.answer) for row in item.rows)

    def tiles(item):
        return {(40, 40): 1, (40, 80): 2, (120, 40): 3}[item.image.size] * 256

    assert padding(bucketed(plain), letters) < 0.5 * padding(plain, letters)
    several = bucketed(plain, max_tiles=4, tile_size=40)
    assert padding(several, tiles) < 0.35 * padding(plain, tiles)


def test_a_plain_mixture_can_be_bucketed_too():
    mixture = Mixture({"told": Part(samples=told(40))}, length=64, queries=1, questions=1)
    ordered = bucketed(mixture, micro_batch=4, window=8)
    assert Counter(ordered.original(index) for index in range(64)) == Counter(range(64))


def test_padding_share_counts_tokens():
    assert padding_share([[10, 10], [5]]) == 0
    assert padding_share([[10, 5], [5]]) == pytest.approx(5 / 25)
    assert padding_share([]) == 0


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(SettingError, match=r"micro_batch=4, but the epoch has a mask in every 5 items"):
        bucketed(epoch(), micro_batch=4)
    with pytest.raises(SettingError, match="window=0"):
        bucketed(epoch(), window=0)
    with pytest.raises(SettingError, match="give micro_batch"):
        bucketed(Mixture({"told": Part(samples=told(4))}, length=8, queries=1))
    with pytest.raises(IndexError):
        bucketed(epoch()).original(173)


@pytest.fixture(scope="module")
def simulation(load_script, find_shared):
    padding = load_script("padding", "benchmarks")
    layout = find_shared("SELF1E_LAYOUT", "data/5_layout_fixture_derived")
    texts = padding.Texts(layout, find_shared("SELF1E_CONFORMANCE", "data/1_conformance"))
    return padding, texts


@pytest.mark.parametrize("conversations", ["fixture", "real"])
@pytest.mark.parametrize("counted_by", ["golden", "estimate"])
def test_padding_of_the_published_mixture_is_below_a_tenth(simulation, find_shared, conversations, counted_by):
    padding, texts = simulation
    epoch = padding.simulated_epoch(texts, conversations=conversations)
    assert len(epoch) == 561_239
    tokens = padding.estimated_tokens
    if counted_by == "golden":
        tokens = padding.golden_tokens(find_shared("SELF1E_GOLDEN", "golden") / "tokenizers" / "qwen2_tiny")
    share = padding.measure(epoch, tokens, windows=3)
    assert share["rows"] > 700
    assert share["bucketed"] < 0.1
    assert share["bucketed"] < 0.5 * share["published"]


def test_padding_at_several_tiles_is_below_a_tenth(simulation):
    padding, texts = simulation
    epoch = padding.simulated_epoch(texts)
    share = padding.measure(
        epoch, lambda turns, tiles: padding.estimated_tokens(turns, tiles, None), windows=3, max_tiles=12
    )
    assert share["bucketed"] < 0.1 < 0.3 < share["published"]
