"""The mixture: seeded, index-addressable, and every mask belongs to its words."""

import numpy as np
import pytest
from PIL import Image

from self1e.data.mixture import Mixture, Part, PhotoAugment
from self1e.data.sample import Question, Sample, Target
from self1e.data.scenes import Scenes
from self1e.errors import SettingError
from self1e.processing import prompts


def photograph() -> Sample:
    """Left half red, right half blue; a small white spot in the red one."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30, 0], pixels[:, 30:, 2] = 200, 200
    pixels[10:20, 5:15] = 255
    masks = {
        "the red half": (pixels[..., 0] > 0) & (pixels[..., 1] == 0),
        "the blue half": (pixels[..., 2] > 0) & (pixels[..., 1] == 0),
        "the spot": pixels[..., 1] > 0,
    }
    targets = tuple(Target(text=text, mask=mask) for text, mask in masks.items())
    return Sample(image=Image.fromarray(pixels), targets=targets, source="test", extra={"absent": ("the cat",)})


def test_item_i_is_always_the_same_item():
    parts = {"scenes": Part(samples=Scenes("train", size_wh=(64, 64), length=50))}
    one, other = (Mixture(parts, length=100, queries=2, questions=1, seed=3) for _ in range(2))
    for index in (7, 0, 99):
        a, b = one[index], other[index]
        assert a.source == b.source
        assert [(r.question, r.answer) for r in a.rows] == [(r.question, r.answer) for r in b.rows]
        assert a.image.tobytes() == b.image.tobytes()
    assert one[0].source != Mixture(parts, length=100, queries=2, seed=4)[0].source


def test_rows_are_published_prompts_with_their_masks():
    mixture = Mixture({"photo": Part(samples=[photograph()])}, length=200, queries=3, validation_prompt=0.5)
    masks = {target.text: target.mask for target in photograph().targets}
    questions = set()
    for index in range(50):
        for row in mixture[index].rows:
            text = next(text for text in masks if text in row.question)
            assert row.mask is not None
            assert np.array_equal(row.mask, masks[text])
            assert row.answer in prompts.TRAINING_ANSWERS
            questions.add(row.question.replace(text, "{text}"))
    assert questions == {*prompts.TRAINING_QUESTIONS["phrase"], prompts.VALIDATION_QUESTIONS["phrase"]}


def test_a_phrase_brings_no_second_article_where_that_is_wished():
    pixels = np.zeros((4, 4), bool)
    said = ("the mug", "A mug", "an old mug", "mug", "theatre")
    targets = tuple(Target(text=text, mask=pixels, kind="phrase") for text in said)
    sample = Sample(image=Image.new("RGB", (4, 4)), targets=targets, source="test")
    found = {}
    for wished in (True, False):
        part = Part(samples=[sample], one_article=wished)
        mixture = Mixture({"own": part}, length=60, queries=5, validation_prompt=0.3)
        found[wished] = {row.question for item in map(mixture.__getitem__, range(60)) for row in item.rows}
    whole = "<image>\nPlease segment the {} in this image."
    kept = "<image>\nWhat is {} in this image? Please output segmentation mask."
    assert {whole.format(text) for text in ("mug", "old mug", "theatre")} <= found[True]
    assert not any(doubled in question for question in found[True] for doubled in ("the the ", "the A ", "the an "))
    assert {kept.format(text) for text in said} <= found[True]
    assert {form.format(text) for text in said for form in (whole, kept)} <= found[False]


def test_absent_names_get_empty_masks():
    mixture = Mixture({"photo": Part(samples=[photograph()], absent=1.0)}, length=5, queries=2)
    for row in mixture[0].rows:
        assert "the cat" in row.question
        assert row.mask is not None
        assert not row.mask.any()


def test_favourites_come_first_and_questions_have_no_mask():
    sample = photograph()
    sample = Sample(image=sample.image, targets=sample.targets, questions=(Question(text="How many?", answer="two"),))
    part = Part(samples=[sample], favourites={"the spot": 1.0})
    mixture = Mixture({"photo": part}, length=20, queries=1, questions=1)
    for index in range(20):
        query, question = mixture[index].rows
        assert "the spot" in query.question
        assert (question.question, question.answer, question.mask) == ("<image>\nHow many?", "two", None)


def test_masks_follow_the_photograph_through_augmentation():
    augment = PhotoAugment(colour=0.0, fewest_pixels=1)
    kinds = set()
    for seed in range(40):
        sample = augment(photograph(), np.random.default_rng(seed))
        pixels = np.asarray(sample.image).astype(int)
        for target in sample.targets:
            inside = pixels[target.mask]
            assert target.mask.shape == pixels.shape[:2]
            expected = {"the red half": (200, 0, 0), "the blue half": (0, 0, 200), "the spot": (255, 255, 255)}
            # A lift of brightness is allowed: it moves all channels alike, so the order stays.
            assert np.abs(inside - np.array(expected[target.text])).max() <= 1
        missing = {"the red half", "the blue half", "the spot"} - {target.text for target in sample.targets}
        assert missing <= set(sample.extra["absent"])  # type: ignore[arg-type]
        kinds.add((sample.image.size, bool(missing)))
    assert len(kinds) > 10


def test_a_mixture_of_nothing_is_refused():
    with pytest.raises(SettingError, match="at least one part"):
        Mixture({}, length=1, queries=1)
