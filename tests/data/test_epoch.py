"""The published mixture: each item as often as its rate says, and a mask in every micro-batch."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from self1e.data.epoch import Epoch
from self1e.data.mixture import Mixture, Part, PhotoAugment
from self1e.data.published import (
    BENCHMARKS,
    RATES,
    TABLE_8,
    TRAINING_SETS,
    differences_from_table_8,
    open_benchmark,
    open_training_set,
    published_mixture,
    published_sets,
)
from self1e.data.sample import Question, Sample, Target
from self1e.errors import DatasetError, SettingError
from self1e.processing import prompts

IMAGE = Image.new("RGB", (4, 3))
MASK = np.ones((3, 4), bool)


def masked(name: str, count: int = 1, **target) -> list[Sample]:
    targets = tuple(Target(text=f"The {name} {n}", mask=MASK, **target) for n in range(5))
    return [Sample(image=IMAGE, targets=targets, source=f"{name}/{number}") for number in range(count)]


def asked(count: int) -> list[Sample]:
    question = Question(text="And?", answer="A dog.", before=(("What?", "A bus."), ("Sure?", "Yes.")))
    return [Sample(image=IMAGE, questions=(question,), source=f"asked/{number}") for number in range(count)]


def test_without_replacements_every_item_comes_as_often_as_its_rate_says():
    parts = {
        "a": Part(samples=masked("a", 3), weight=2),
        "b": Part(samples=masked("b", 4)),
        "c": Part(samples=asked(2)),
    }
    epoch = Epoch(parts, seed=1)
    assert epoch.counts == {"a": 6, "b": 4, "c": 2}
    found = Counter(epoch[index].source for index in range(len(epoch)))
    assert found == {f"a/{n}": 2 for n in range(3)} | {f"b/{n}": 1 for n in range(4)} | {
        f"asked/{n}": 1 for n in range(2)
    }


def test_every_micro_batch_has_a_mask_and_nothing_is_read_twice():
    read = []

    class Counted(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    parts = {"a": Part(samples=Counted(masked("a", 1))), "c": Part(samples=Counted(asked(21)))}
    epoch = Epoch(parts, with_masks=["a"], batch_size=5)
    items = [epoch[index] for index in range(len(epoch))]
    assert len(items) == len(read) == 22
    for start in range(0, len(items), 5):
        assert any(row.mask is not None for item in items[start : start + 5] for row in item.rows)


def test_replacements_are_drawn_by_the_number_of_items():
    parts = {
        "a": Part(samples=masked("a", 30)),
        "b": Part(samples=masked("b", 10), weight=9),
        "c": Part(samples=asked(3)),
    }
    epoch = Epoch(parts, with_masks=["a", "b"], batch_size=1)
    share = np.mean([epoch[index].source.startswith("b") for index in range(len(epoch))])
    assert abs(share - 90 / 120) < 4 * (0.75 * 0.25 / len(epoch)) ** 0.5


def test_item_i_is_the_same_item_and_another_epoch_has_another_order():
    parts = {"a": Part(samples=masked("a", 50)), "c": Part(samples=asked(50))}

    def told(**settings):
        epoch = Epoch(parts, with_masks=["a"], **settings)
        return [(item.source, [row.turns for row in item.rows]) for item in map(epoch.__getitem__, range(100))]

    assert told(seed=1) == told(seed=1)
    assert told(seed=1) != told(seed=2)
    assert told(seed=1) != told(seed=1, epoch=1)


def test_published_sampling_asks_at_most_three_queries_in_the_training_prompts():
    epoch = Epoch({"a": Part(samples=masked("Cup", 40), lower=True)}, validation_prompt=0.0)
    seen, words = set(), set()
    for index in range(len(epoch)):
        rows = epoch[index].rows
        texts = {next(text for n in range(5) if (text := f"the cup {n}") in row.question) for row in rows}
        assert len(rows) == len(texts) == 3
        words |= texts
        seen |= {(row.question.replace(text, "{text}")) for row in rows for text in texts if text in row.question}
    assert seen == set(prompts.TRAINING_QUESTIONS["phrase"])
    assert len(words) == 5


def test_sentences_keep_their_capitals_and_aliases_are_drawn():
    sentences = Epoch({"a": Part(samples=masked("Cup", 9, kind="sentence"), lower=True)}, validation_prompt=0.0)
    assert all("The Cup" in row.question for index in range(9) for row in sentences[index].rows)
    named = Epoch({"a": Part(samples=masked("cup", 40, aliases=("a mug", "a glass")))})
    drawn = Counter(
        next(name for name in ("The cup", "a mug", "a glass") if name in row.question)
        for index in range(40)
        for row in named[index].rows
    )
    assert set(drawn) == {"The cup", "a mug", "a glass"}
    assert min(drawn.values()) > 20


def test_earlier_turns_stay_with_their_question():
    (row,) = Epoch({"c": Part(samples=asked(1))})[0].rows
    assert row.turns == (("<image>\nWhat?", "A bus."), ("Sure?", "Yes."), ("And?", "A dog."))
    assert row.mask is None


def test_a_picture_without_labels_gives_way_to_the_next():
    bare = Sample(image=IMAGE, source="bare")
    epoch = Epoch({"a": Part(samples=[bare, *masked("a", 1)])})
    assert [epoch[index].source for index in range(2)] == ["a/0", "a/0"]
    with pytest.raises(DatasetError, match="around bare has a query"):
        Epoch({"a": Part(samples=[bare])})[0]


def test_settings_that_cannot_work_are_refused():
    parts = {"a": Part(samples=masked("a"), weight=1.5)}
    with pytest.raises(SettingError, match=r"weight of 'a' is 1\.5, expected a whole number"):
        Epoch(parts)
    parts = {"abc": Part(samples=masked("a"))}
    with pytest.raises(SettingError, match=r"with_masks names 'abd', which is no part\. Did you mean 'abc'\?"):
        Epoch(parts, with_masks=["abd"])
    with pytest.raises(SettingError, match="batch_size=0"):
        Epoch(parts, batch_size=0)
    with pytest.raises(IndexError):
        Epoch(parts)[1]


def test_ignored_pixels_follow_the_photograph_through_augmentation():
    pixels = np.random.default_rng(0).integers(0, 2, (20, 30), dtype=np.uint8)
    image = Image.fromarray(np.stack([pixels * 200] * 3, axis=-1))
    target = Target(text="x", mask=pixels > 0, ignore=pixels == 0)
    for seed in range(8):
        sample = PhotoAugment(colour=0, fewest_pixels=1)(
            Sample(image=image, targets=(target,)), np.random.default_rng(seed)
        )
        (cut,) = sample.targets
        assert cut.ignore is not None
        assert np.array_equal(cut.ignore, ~cut.mask)


def test_a_plain_mixture_draws_what_it_always_drew():
    """A training run depends on it: items are pinned here, drawn before epochs existed."""
    parts = {"a": Part(samples=masked("a", 7), weight=1.0, bare=0.5), "b": Part(samples=masked("b", 5), weight=0.5)}
    mixture = Mixture(parts, length=9, queries=2, seed=3)
    assert [(mixture[i].source, mixture[i].rows[0].question, mixture[i].rows[-1].answer) for i in (0, 4, 8)] == PINNED


PINNED = [
    ("a/1", "<image>\n What is The a 3 in this image? Please output segmentation mask.", "It is [SEG]."),
    ("b/2", "<image>\nCan you segment the The b 0 in this image?", "Sure, the segmentation result is [SEG]."),
    ("a/2", "<image>\nCan you segment the The a 1 in this image?", "[SEG]."),
]


@pytest.mark.parametrize("referring", ["paper", "code"])
def test_the_recipes_are_the_published_ones(referring):
    sets = published_sets(RATES["seg"], referring)
    assert ("refclef" in sets) == (referring == "code")
    assert {name: rate for name, rate in sets.items() if rate != 1} == {
        **dict.fromkeys(("ade20k", "cocostuff", "pascal_part", "paco_lvis", "reasonseg"), 6),
        **{name: 20 for name in sets if name.startswith("refc")},
    }
    assert set(published_sets().values()) == {1}
    assert set(sets) - {"refclef"} == set(TABLE_8)
    with pytest.raises(SettingError, match="choose one of paper, code"):
        published_sets(referring="lisa")


def test_the_totals_are_table_8s():
    plain, seg = (
        sum(TABLE_8[name] * rate for name, rate in published_sets(rates).items())
        for rates in (RATES["plain"], RATES["seg"])
    )
    assert round(plain / 1000) == 561
    assert round(seg / 1e5) / 10 == 2.0  # the paper prints 2.4M, but its own rows add up to this
    assert differences_from_table_8({"vqav2": 100_000, "vizwiz": 20_523, "llava": 157_712, "mine": 3}) == []
    assert len(differences_from_table_8({"gqa": 99_000, "reasonseg": 238, "refcoco": 16_994})) == 2


def test_everything_that_is_missing_is_told_at_once(tmp_path):
    with pytest.raises(DatasetError) as error:
        published_mixture(tmp_path)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("14 data sets of the mixture are not there")
    assert [line.split(":")[0] for line in lines[1:]] == [f"- {name}" for name in published_sets()]
    with pytest.raises(DatasetError, match=r"only names 'ade'\. Did you mean 'ade20k'\?"):
        published_mixture(tmp_path, only=["ade"])
    with pytest.raises(DatasetError, match=r"No folder .*/nowhere"):
        published_mixture(tmp_path / "nowhere")


def test_a_published_mixture_reads_both_folders(tmp_path):
    (tmp_path / "dataset/ade20k/images/training").mkdir(parents=True)
    (tmp_path / "dataset/ade20k/annotations/training").mkdir(parents=True)
    (tmp_path / "data/gqa/images").mkdir(parents=True)
    for name in ("ade20k/images/training/a.jpg", "../data/gqa/images/n1.jpg"):
        IMAGE.save(tmp_path / "dataset" / name)
    Image.fromarray(np.full((3, 4), 2, np.uint8)).save(tmp_path / "dataset/ade20k/annotations/training/a.png")
    line = {"image": "data/gqa/images/n1.jpg", "question": "What?", "question_id": 1, "answer": "bus"}
    (tmp_path / "data/gqa/train_balanced.jsonl").write_text(json.dumps(line))
    for folder in (tmp_path, tmp_path / "dataset"):
        epoch = published_mixture(folder, only=["ade20k", "gqa"], rates=RATES["seg"])
        assert epoch.counts == {"ade20k": 6, "gqa": 1}
        sources = Counter(epoch[index].source for index in range(7))
        assert set(sources) == {"ade20k/training/a", "gqa/1"}
        assert any("building" in row.question for row in epoch[6].rows)  # the last of all is one with a mask


def test_names_of_sets_and_benchmarks_are_checked(tmp_path):
    with pytest.raises(DatasetError, match=r"Unknown data set 'ade'\. Did you mean 'ade20k'\?"):
        open_training_set(tmp_path, "ade")
    with pytest.raises(
        DatasetError, match=r"Unknown benchmark 'refcoco/test'\. Did you mean 'refco.*Known: reasonseg/val, "
    ):
        open_benchmark(tmp_path, "refcoco/test")
    for name in BENCHMARKS:
        with pytest.raises(DatasetError, match="expected"):
            open_benchmark(tmp_path, name)
    for name in TRAINING_SETS:
        with pytest.raises(DatasetError, match="expected"):
            open_training_set(tmp_path, name)
