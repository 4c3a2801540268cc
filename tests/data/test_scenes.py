from __future__ import annotations

import hashlib
import itertools
import re
from typing import Any

import numpy as np
import pytest

from self1e.data.sample import Sample
from self1e.data.scenes import (
    COLOURS,
    HELD_OUT,
    KINDS,
    QUESTION_TAGS,
    SINGLE_TARGET_TAGS,
    TARGET_TAGS,
    Scenes,
    all_words,
    contact_sheet,
    split_words,
)
from self1e.data.scenes.grammar import Extreme, Noun, Ordinal, Related, Riddle, The
from self1e.data.scenes.scene import MIN_AREA, MIN_VISIBLE, Scene, Thing
from self1e.data.scenes.shapes import SIZES, stamp
from self1e.errors import SettingError

COUNT = 300
PINNED = ["the biggest one", "all the shapes except the black rectangle"]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(Scenes("train", length=COUNT))


@pytest.fixture(scope="module")
def composed() -> list[Sample]:
    return list(Scenes("test", length=80, held_out="only"))


def things_of(sample: Sample) -> tuple[Thing, ...]:
    things: Any = sample.extra["things"]
    return things


def targets_of(samples: list[Sample]):
    for sample in samples:
        denotes: Any = sample.extra["denotes"]
        for target, indices in zip(sample.targets, denotes, strict=True):
            yield sample, target, indices


def texts_of(sample: Sample) -> list[str]:
    return [target.text for target in sample.targets] + [f"{q.text} {q.answer}" for q in sample.questions]


def names_held_out_pair(text: str) -> bool:
    return any(
        re.search(rf"\b{colour} {kind}(s|es)?\b|\b{kind} that is (not )?{colour}\b", text) for colour, kind in HELD_OUT
    )


def fingerprint(sample: Sample) -> str:
    return hashlib.sha256(sample.image.tobytes()).hexdigest()


def test_a_sample_is_the_same_in_any_order_and_instance(samples: list[Sample]):
    other = Scenes("train", length=5000)
    for i in (17, 3, 0, 250):
        again = other[i]
        assert fingerprint(again) == fingerprint(samples[i])
        assert texts_of(again) == texts_of(samples[i])
        assert all(np.array_equal(a.mask, b.mask) for a, b in zip(again.targets, samples[i].targets, strict=True))
        assert again.source == f"scenes/train/{i}"


def test_a_pinned_sample_has_not_changed():
    sample = Scenes("train")[0]
    assert [target.text for target in sample.targets][:2] == PINNED


def test_splits_and_seeds_share_no_picture():
    sets = [Scenes(split, length=60, size_wh=(64, 64)) for split in ("train", "val", "test")]
    sets.append(Scenes("train", length=60, size_wh=(64, 64), seed=1))
    hashes = [fingerprint(sample) for scenes in sets for sample in scenes]
    assert len(set(hashes)) == len(hashes)


def test_an_index_outside_the_length_ends_iteration():
    scenes = Scenes("val", length=3)
    assert fingerprint(scenes[-1]) == fingerprint(scenes[2])
    with pytest.raises(IndexError, match="3 samples"):
        scenes[3]


def test_training_neither_shows_nor_names_a_held_out_pair(samples: list[Sample]):
    shown = {thing.pair for sample in samples for thing in things_of(sample)}
    assert len(shown) > 80
    assert not shown & HELD_OUT
    for text in itertools.chain.from_iterable(map(texts_of, samples)):
        assert not names_held_out_pair(text), text


def test_asking_only_for_held_out_pairs_names_one_in_every_target(composed: list[Sample]):
    for sample, target, _ in targets_of(composed):
        named = any(re.search(rf"\b{c}\b.*\b{k}|\b{k}.*\b{c}\b", target.text) for c, k in HELD_OUT)
        assert named, target.text
        assert any(thing.pair in HELD_OUT for thing in things_of(sample))


def test_training_keeps_eight_of_ten_colours_of_every_kind():
    for kind in KINDS:
        assert sum((colour, kind) not in HELD_OUT for colour in COLOURS) == len(COLOURS) - 2


def test_a_mask_is_the_visible_pixels_of_what_the_words_denote(samples: list[Sample]):
    for sample, target, indices in targets_of(samples):
        owner: Any = sample.extra["owner"]
        assert target.mask.dtype == bool
        assert np.array_equal(target.mask, np.isin(owner, [i + 1 for i in indices]))
        assert target.mask.sum() == sum(things_of(sample)[i].visible_area for i in indices)


def test_pixels_have_the_colour_that_words_say(samples: list[Sample]):
    names = list(COLOURS)
    palette = np.array(list(COLOURS.values()))
    for sample in samples[:100]:
        owner: Any = sample.extra["owner"]
        for thing in things_of(sample):
            mean = np.median(np.asarray(sample.image)[owner == thing.index + 1], axis=0)
            nearest = names[int(np.abs(palette - mean).sum(axis=1).argmin())]
            assert nearest == thing.colour or thing.pattern != "plain"


def test_every_thing_can_be_seen(samples: list[Sample]):
    for thing in itertools.chain.from_iterable(map(things_of, samples)):
        assert thing.visible_fraction >= MIN_VISIBLE
        assert thing.visible_area >= MIN_AREA * 128 * 128


def test_every_tag_occurs_and_kind_follows_it(samples: list[Sample]):
    assert {target.tag for _, target, _ in targets_of(samples)} == set(TARGET_TAGS)
    assert {question.tag for sample in samples for question in sample.questions} == set(QUESTION_TAGS)
    for _, target, _ in targets_of(samples):
        assert target.kind == ("sentence" if target.tag == "reasoning" else "phrase")
        assert target.text.endswith("?") == (target.kind == "sentence")
        assert target.text[0].isupper() if target.kind == "sentence" else target.text == target.text.lower()


def test_tags_decide_how_many_things_are_meant(samples: list[Sample]):
    for _, target, indices in targets_of(samples):
        if target.tag in SINGLE_TARGET_TAGS:
            assert len(indices) == 1, target.text
        elif target.tag == "absent":
            assert not target.mask.any(), target.text
        elif target.tag in ("plural", "several"):
            assert len(indices) > 1, target.text


def test_plain_attribute_phrases_mean_what_they_say(samples: list[Sample]):
    phrase = re.compile(rf"the ({'|'.join(COLOURS)}) ({'|'.join(KINDS)})")
    seen = 0
    for sample, target, indices in targets_of(samples):
        if found := phrase.fullmatch(target.text):
            assert [thing.index for thing in things_of(sample) if thing.pair == found.groups()] == list(indices)
            seen += 1
    assert seen > 50


def test_absent_phrases_are_often_of_the_hard_kind(samples: list[Sample]):
    hard = 0
    for sample, target, _ in targets_of(samples):
        said = set(split_words(target.text))
        colours, kinds = ({getattr(thing, name) for thing in things_of(sample)} for name in ("colour", "kind"))
        hard += target.tag == "absent" and bool(said & colours) and bool(said & kinds)
    assert hard > COUNT / 10


def test_only_the_tags_asked_for_are_given():
    for tag in TARGET_TAGS:
        scenes = Scenes("val", length=4, tags=(tag,), size_wh=(64, 64))
        assert {target.tag for sample in scenes for target in sample.targets} == {tag}


def test_vocabulary_is_closed_and_small():
    known = set(all_words())
    assert len(known) < 200
    assert list(all_words()) == sorted(known)
    emitted: set[str] = set()
    for sample in Scenes("test", length=2000, size_wh=(48, 48), held_out="any"):
        for text in texts_of(sample):
            emitted.update(split_words(text))
    assert emitted <= known
    assert len(emitted) > 0.98 * len(known)


def test_yes_and_no_are_balanced():
    answers = [q.answer for s in Scenes("train", length=500, size_wh=(48, 48)) for q in s.questions]
    yes, no = answers.count("yes"), answers.count("no")
    assert 0.75 < yes / no < 1.33


@pytest.mark.parametrize("size_wh", [(64, 64), (96, 64), (80, 160)])
def test_sizes_are_honoured(size_wh: tuple[int, int]):
    for sample in Scenes("train", length=6, size_wh=size_wh):
        assert sample.image.size == size_wh
        assert sample.image.mode == "RGB"
        assert all(target.mask.shape == size_wh[::-1] for target in sample.targets)


def test_one_of_several_sizes_is_drawn():
    sizes = [(64, 64), (96, 64)]
    assert {sample.image.size for sample in Scenes("train", length=20, size_wh=sizes)} == set(sizes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "dev"}, "scenes.split='dev'"),
        ({"split": "train", "held_out": "only"}, "must never see"),
        ({"split": "test", "held_out": "always"}, "scenes.held_out='always'"),
        ({"split": "test", "tags": ("colour",)}, "scenes.tags="),
        ({"split": "test", "tags": ()}, "scenes.tags="),
        ({"split": "test", "tags": ("reasoning",), "held_out": "only"}, "name no pair"),
        ({"split": "test", "size_wh": (16, 16)}, "at least 48"),
        ({"split": "test", "size_wh": (300, 100)}, "at most 2 times"),
        ({"split": "test", "size_wh": []}, "is empty"),
        ({"split": "test", "length": 0}, "scenes.length=0"),
        ({"split": "test", "seed": -1}, "scenes.seed=-1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(SettingError, match=re.escape(message)):
        Scenes(**settings)


def test_kinds_of_one_size_have_one_area():
    for kind in KINDS:
        shape = stamp(kind, diameter=60, centre_xy=(64, 64), turn=7)
        assert shape.silhouette.sum() == pytest.approx(np.pi * 30**2, rel=0.08), kind


def test_size_classes_are_far_apart():
    ranges = sorted(SIZES.values())
    assert all(low[1] * 1.3 < high[0] for low, high in itertools.pairwise(ranges))


# ---- Meaning: small scenes made by hand, 100 x 100. ----


def thing(index: int, kind: str, colour: str, x: float, y: float, diameter: float = 10) -> Thing:
    area, r = int(np.pi * diameter**2 / 4), diameter / 2
    return Thing(
        index=index,
        kind=kind,
        colour=colour,
        size="small",
        pattern="plain",
        centre_xy=(x, y),
        box_xyxy=(int(x - r), int(y - r), int(x + r), int(y + r)),
        area=area,
        visible_area=area,
        visible_fraction=1.0,
    )


def scene_of(*things: Thing) -> Scene:
    none = np.zeros((len(things), len(things)))
    blank = np.zeros((100, 100), dtype=np.uint8)
    return Scene(
        size_wh=(100, 100),
        things=things,
        owner=blank,
        pixels=np.zeros((100, 100, 3), dtype=np.uint8),
        overlap=none,
        covered=none,
        contained=none,
    )


def test_a_clear_relation_holds_and_a_borderline_one_is_unclear():
    square = Noun(kind="square")

    def left(x: float, y: float):
        scene = scene_of(thing(0, "square", "blue", 50, 50), thing(1, "star", "red", x, y))
        return Related(Noun(kind="star"), "left", square).denotes(scene)

    assert left(20, 50) == {1}
    assert left(80, 50) == frozenset()
    assert left(45, 50) is None  # hardly to the left
    assert left(35, 90) is None  # rather below


def test_a_near_tie_has_no_largest():
    assert Extreme(Noun(), "largest").denotes(
        scene_of(thing(0, "star", "red", 20, 20, 20), thing(1, "star", "red", 70, 70))
    ) == {0}
    near = scene_of(thing(0, "star", "red", 20, 20, 11), thing(1, "star", "red", 70, 70))
    assert Extreme(Noun(), "largest").denotes(near) is None


def test_ordinals_count_from_the_named_side():
    scene = scene_of(*(thing(i, "ring", "red", x, 50) for i, x in enumerate((70, 20, 45))))
    assert Ordinal(Noun(kind="ring"), 2, "left").denotes(scene) == {2}
    assert Ordinal(Noun(kind="ring"), 1, "right").denotes(scene) == {0}
    assert Ordinal(Noun(kind="ring"), 2, "top").denotes(scene) is None


def test_riddles_are_unclear_where_people_would_disagree():
    circle, star = thing(0, "circle", "red", 20, 20), thing(1, "star", "green", 70, 70)
    assert Riddle("rolls").denotes(scene_of(circle, star)) == {0}
    assert Riddle("rolls").denotes(scene_of(circle, thing(1, "oval", "red", 70, 70))) is None
    assert Riddle("green").denotes(scene_of(circle, star)) == {1}
    assert Riddle("corners").denotes(scene_of(circle, star)) == {1}
    assert Riddle("corners").denotes(scene_of(thing(0, "hexagon", "red", 20, 20), star)) is None


def test_closest_is_clear_by_centres_and_by_edges():
    anchor = thing(0, "cross", "red", 50, 50)
    closest = Related(Noun(kind="star"), "closest", Noun(kind="cross"))
    near, far, tie = thing(1, "star", "red", 65, 50), thing(2, "star", "red", 10, 50), thing(2, "star", "red", 34, 50)
    assert closest.denotes(scene_of(anchor, near, far)) == {1}
    assert closest.denotes(scene_of(anchor, near, tie)) is None


def test_phrasings_vary_but_keep_their_words():
    rng = np.random.default_rng(0)
    said = {The(Noun(kind="star", colour="red", size="large")).words(rng) for _ in range(50)}
    assert said == {"the large red star", "the big red star", "the large star that is red", "the big star that is red"}


def test_a_contact_sheet_has_a_tile_per_picture_and_target():
    few = [Scenes("val")[i] for i in range(2)]
    sheet = contact_sheet(few, columns=4)
    tiles = sum(1 + len(sample.targets) for sample in few)
    assert sheet.height // 242 == -(-tiles // 4)


def test_more_comparisons_can_be_asked_for_and_change_no_expression():
    plain, more = (Scenes("train", length=300, size_wh=(48, 48), comparisons=weight) for weight in (1.0, 4.0))
    shares = []
    for scenes in (plain, more):
        tags = [question.tag for sample in scenes for question in sample.questions]
        assert set(tags) == set(QUESTION_TAGS)
        shares.append(tags.count("compare") / len(tags))
    assert shares[1] > 1.5 * shares[0]
    for before, after in zip(plain, more, strict=True):
        assert [target.text for target in before.targets] == [target.text for target in after.targets]
    with pytest.raises(SettingError, match="comparisons=0 must be above 0"):
        Scenes("train", comparisons=0)


def test_hard_expressions_are_more_often_hard_and_as_true():
    plain, hard = (Scenes("train", length=300, size_wh=(96, 96), hard=share) for share in (0.0, 1.0))
    shares = []
    for scenes in (plain, hard):
        texts = [target.text for sample in scenes for target in sample.targets]
        assert {target.tag for sample in scenes for target in sample.targets} <= set(TARGET_TAGS)
        shares.append(sum(bool(re.search("second|third|closest|nearest", text)) for text in texts) / len(texts))
    assert shares[0] < 0.15
    assert shares[1] > 0.4
    tags = {target.tag for sample in hard for target in sample.targets}
    assert tags == {"ordinal", "relation", "attribute", "absent"}
    for sample, target, indices in targets_of(list(hard)):
        assert (target.tag == "absent") == (not indices) == (not target.mask.any())
        assert len(indices) <= 1
        assert not names_held_out_pair(target.text), sample.source


def test_hard_expressions_need_a_share_and_tags_that_have_some():
    with pytest.raises(SettingError, match=r"hard=1\.5 is a share"):
        Scenes("train", hard=1.5)
    with pytest.raises(SettingError, match="none of these has hard expressions"):
        Scenes("train", hard=0.5, tags=["plural"])
