"""Chat with masks: what is kept is exact, masks see one [SEG], decisions are the model's unless taken from it."""

from __future__ import annotations

import copy
import dataclasses
import json
import threading

import numpy as np
import pytest
import torch

import self1e
from self1e.data.scenes import Scenes
from self1e.errors import CheckpointError, OutputError, PictureError, PromptError, SettingError
from self1e.inference import loading
from self1e.inference.segmenter import Self1E
from self1e.inference.session import Done, Mask, NotThere, Session, TextDelta, check_mode
from self1e.inference.text_cache import bytes_per_token
from self1e.structures import Segmentation

pytestmark = pytest.mark.usefixtures("one_thread")

DIALOGUE = [  # question, mode
    ("What is it?", "text"),
    ("the red block", "segment"),
    ("And where?", "text"),
    ("Which part is blue?", "segment"),
    ("Thanks.", "text"),
]


@pytest.fixture(scope="module")
def wide_model(tiny_model):
    """The tiny model in float64, where rounding hides nothing."""
    return Self1E(copy.deepcopy(tiny_model.model).double(), tiny_model.processor, name="wide")


def rigged(model, **favours):
    """A copy that writes one token first of all others: ``seg=+50`` or ``end=+50`` on every score."""
    network = copy.deepcopy(model.model)
    bias = torch.zeros(network.config.text_config.vocab_size, dtype=network.dtype)
    ids = {"seg": model.processor.seg_token_id, "end": model.processor.turn_end_id}
    for name, value in favours.items():
        bias[ids[name]] = value
    network.lm_head.register_forward_hook(lambda module, inputs, output: output + bias)
    return Self1E(network, model.processor, name="rigged")


class Watched:
    """Which tokens go through the model as text, and what it scores next."""

    def __init__(self, model):
        self.steps = []
        self.logits = []
        self.image_tokens = []
        self._seen = model.model.register_forward_hook(self._keep, with_kwargs=True)

    def _keep(self, module, args, kwargs, output):
        if kwargs.get("past_key_values") is not None:
            self.steps.append(kwargs["input_ids"].shape[1])
            self.logits.append(output.logits[0, -1].clone())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._seen.remove()


def run(session, dialogue=DIALOGUE, **settings):
    """All events of all turns."""
    return [list(session.ask(words, mode=mode, **settings)) for words, mode in dialogue]


def done(events):
    """The last event, which says what became of the turn."""
    assert isinstance(events[-1], Done)
    assert not any(isinstance(event, Done) for event in events[:-1])
    return events[-1]


def conversation(session, upto=None):
    """The ids of a conversation, built by the processor and not by the session."""
    processor = session.model.processor
    image = session.encoded.grid.num_tiles
    ids = []
    for number, turn in enumerate(session.turns[:upto]):
        if number == 0:
            ids += processor.tokenize_conversation([(turn.prompt, None)], num_tiles=image).input_ids
        else:
            words = turn.prompt.removeprefix("<image>\n")
            longer = processor.tokenize_conversation([("a", "b"), (words, None)], num_tiles=0).input_ids
            shorter = processor.tokenize_conversation([("a", "b")], num_tiles=0).input_ids
            end = processor._encode(processor.conversation_template.separator)
            ids += end + longer[len(shorter) :]
        ids += turn.answer_ids
    return ids


# ---------------------------------------------------------------------- the kept text


def test_only_new_tokens_are_computed(tiny_model, pictures):
    session = tiny_model.session(pictures[0], max_new_tokens=5)
    with Watched(tiny_model) as watched:
        turns = run(session)
    ids = conversation(session)
    assert session.num_tokens == len(ids)
    # Every token once; those of the last answer that nothing was asked behind, not at all.
    assert sum(watched.steps) == len(session._text) <= len(ids)
    assert len(ids) - len(session._text) <= 1
    reported = [done(events) for events in turns]
    assert reported[0].known_tokens == 0
    assert all(one.known_tokens > 0 for one in reported[1:])
    starts = [step for step in watched.steps if step > 1]
    assert starts == [one.prompt_tokens for one in reported]


def test_what_a_conversation_holds_is_counted(tiny_model, pictures):
    session = tiny_model.session(pictures[0], max_new_tokens=5)
    assert session.num_bytes == 0
    run(session)
    assert session.num_bytes == session.bytes_per_token * session.num_tokens
    assert 0 < session.num_bytes <= session.max_bytes


def test_a_question_around_nothing_is_refused(tiny_model, pictures):
    session = tiny_model.session(pictures[0], max_new_tokens=5)
    for mode in ("auto", "text"):
        with pytest.raises(SettingError, match="it is for mode='segment'"):
            session.ask("the cup", mode=mode, template="Please segment {text}.")
    assert done(list(session.ask("the cup", mode="segment", template="Please segment {text}."))).decision == "segment"


def test_words_that_spell_seg_many_times_are_words(tiny_model, pictures):
    session = tiny_model.session(pictures[0], max_new_tokens=5)
    words = "[SEG] [SEG][SEG] <image> <|im_end|> [SEG]"
    for mode in ("segment", "text", "segment"):
        events = list(session.ask(words, mode=mode))
        assert sum(isinstance(event, Mask | NotThere) for event in events) == (mode == "segment")
    seg = tiny_model.processor.seg_token_id
    assert sum(token == seg for token in session._ids) == 2  # those of the two answers


def test_kept_text_scores_like_text_computed_from_scratch(wide_model, pictures):
    session = wide_model.session(pictures[1], max_new_tokens=5, max_tiles=4)
    assert session.encoded.grid.num_tiles > 1
    with Watched(wide_model) as watched:
        run(session)
    ids = conversation(session)
    with torch.inference_mode():
        whole = wide_model.model(
            input_ids=torch.tensor([ids]),
            vision=session.encoded.vision,
            picture_of_row=[0],
            dual_perception=False,
        ).logits[0]
    places = np.cumsum(watched.steps) - 1
    assert len(places) > 10
    for place, logits in zip(places, watched.logits, strict=True):
        torch.testing.assert_close(logits, whole[place], rtol=0, atol=1e-10)


def test_the_first_answer_is_that_of_chat(tiny_model, pictures):
    session = tiny_model.session(pictures[0], mode="auto", max_new_tokens=9)
    answer = done(list(session.ask("What is it?"))).text
    assert answer.strip() == tiny_model.chat(pictures[0], "What is it?", max_new_tokens=9)


def test_a_conversation_has_the_tokens_of_the_template(tiny_model, pictures):
    session = tiny_model.session(pictures[0], max_new_tokens=4)
    run(session, [("the red block", "segment"), ("the blue one", "segment")])
    first, second = (turn.prompt for turn in session.turns)
    expected = tiny_model.processor.tokenize_conversation(
        [(first, "[SEG]."), (second.removeprefix("<image>\n"), "[SEG].")], num_tiles=1
    ).input_ids
    end = tiny_model.processor._encode(tiny_model.processor.conversation_template.separator)
    assert session._ids + end == expected


def test_words_of_strangers_stay_words(tiny_model, pictures):
    session = tiny_model.session(pictures[0], max_new_tokens=2)
    run(session, [("Say [SEG] <IMG_CONTEXT><|im_end|>", "text"), ("<image> [SEG]", "text"), ("[SEG]", "segment")])
    processor = tiny_model.processor
    assert session._ids.count(processor.image_token_id) == processor.image_seq_length
    assert session._ids.count(processor.seg_token_id) == 1
    assert len(session.turns[2].results) == 1


# ---------------------------------------------------------------------- masks


@pytest.mark.parametrize("exact", ["folded", "plain"])
def test_the_first_mask_is_that_of_segment(tiny_model, pictures, exact):
    session = tiny_model.session(pictures[0], exact=exact)
    events = list(session.ask("the red block", mode="segment"))
    expected = tiny_model.segment(pictures[0], "the red block", exact=exact)
    (mask,) = (event for event in events if isinstance(event, Mask))
    assert mask.segmentation.rles == expected.rles
    assert mask.score == pytest.approx(float(expected.scores[0]), abs=1e-6)


def by_hand(model, session, ids):
    """Mask logits of the last [SEG], by a dense mask written out entry by entry."""
    n = len(ids)
    config = model.model.config
    is_image = [token == config.image_token_id for token in ids]
    last = max(k for k, token in enumerate(ids) if token == config.seg_token_id)
    allowed = torch.zeros(n, n, dtype=torch.bool)
    for query in range(n):
        for key in range(n):
            allowed[query, key] = key <= query or (is_image[query] and (is_image[key] or key == last))
    embeddings = model.model._embed(torch.tensor([ids]), session.encoded.vision.coarse)
    bias = torch.zeros(n, n, dtype=model.dtype).masked_fill(~allowed, -torch.inf)
    hidden = model.model.model.language_model(inputs_embeds=embeddings, attention_mask=bias[None, None])
    hidden = hidden.last_hidden_state[0]
    vision = session.encoded.vision
    (rows, columns), side = vision.tile_grids[0], config.patches_per_side
    assert (rows, columns) == (1, 1)
    image = hidden[torch.tensor(is_image)]
    half = side // config.compression
    return model.model.mask_head(
        fine=model.model.fine_features(vision.patches).reshape(1, side, side, -1),
        coarse_in=vision.coarse.reshape(1, half, half, -1),
        coarse_out=image.reshape(1, half, half, -1),
        seg=hidden[last - 1][None],
        picture_of_row=torch.tensor([0]),
        row_of_seg=None,
        with_auxiliary=False,
    ).mask_logits[0]


@pytest.mark.parametrize("exact", ["folded", "plain"])
def test_image_tokens_see_the_current_seg_and_no_earlier_one(wide_model, pictures, exact):
    session = wide_model.session(pictures[0], max_new_tokens=3, exact=exact)
    run(session, DIALOGUE[:4])
    ids = conversation(session)[:-1]  # without the full stop
    assert ids.count(wide_model.processor.seg_token_id) == 2
    with torch.inference_mode():
        expected = by_hand(wide_model, session, ids)
        found = wide_model.read_rows(session.encoded, [ids], exact=exact, only_last=True)[0]
        # The rule is no formality: with the earlier [SEG] in sight the mask is another one.
        other = wide_model.read_rows(session.encoded, [ids], exact="plain")[0][-1]
    torch.testing.assert_close(found[0].double(), expected, rtol=0, atol=1e-5)  # read_rows gives float32
    assert (found[0] - other).abs().max() > 1e-3
    assert (
        session.turns[3].results[0].rles
        == self1e.Segmentation.from_masks(
            wide_model.processor.post_process_masks([found], [pictures[0].size[::-1]])[0].numpy(), [1.0], ["x"]
        ).rles
    )


def test_a_mask_leaves_the_kept_text_as_it_was(wide_model, pictures):
    session = wide_model.session(pictures[0], max_new_tokens=4)
    run(session, DIALOGUE[:2])
    before = [(layer.keys.clone(), layer.values.clone()) for layer in session._text._cache.layers]
    ids = conversation(session)
    wide_model.read_rows(session.encoded, [ids], only_last=True)
    after = [(layer.keys, layer.values) for layer in session._text._cache.layers]
    for (keys, values), (other_keys, other_values) in zip(before, after, strict=True):
        assert torch.equal(keys, other_keys)
        assert torch.equal(values, other_values)


def test_words_after_a_mask_score_as_without_the_mask_pass(wide_model, pictures, monkeypatch):
    def scores(session):
        with Watched(wide_model) as watched:
            run(session)
        return watched.logits

    with_masks = scores(wide_model.session(pictures[0], max_new_tokens=4))
    session = wide_model.session(pictures[0], max_new_tokens=4)
    nothing = Segmentation.from_masks([np.zeros((60, 90), bool)], [0], ["x"])
    monkeypatch.setattr(session, "_read", lambda *_: NotThere(nothing, 0.0))  # [SEG] is given, no mask is read
    without = scores(session)
    assert len(with_masks) == len(without) > 10
    assert all(torch.equal(one, other) for one, other in zip(with_masks, without, strict=True))


def test_several_seg_in_one_answer_are_several_masks(tiny_model, pictures):
    model = rigged(tiny_model, seg=50.0)
    session = model.session(pictures[0], max_new_tokens=3)
    events = list(session.ask("Show me."))
    masks = [event for event in events if isinstance(event, Mask | NotThere)]
    assert len(masks) == 3 == len(session.turns[0].results)
    assert done(events).stopped == "length"
    assert [mask.segmentation.text[0] for mask in masks] == ["[SEG]", "[SEG][SEG]", "[SEG][SEG][SEG]"]


def test_several_seg_tokens_make_one_mask(make_tiny_model, tmp_path, pictures):
    model = rigged(self1e.load(make_tiny_model(tmp_path / "four", num_seg_tokens=4), device="cpu"), seg=50.0)
    session = model.session(pictures[0], max_new_tokens=2)
    run(session, [("the red block", "segment"), ("Show me.", "auto")])
    assert [len(turn.results) for turn in session.turns] == [1, 1]
    assert session.turns[0].text == "[SEG]" * 4 + "."
    expected = model.segment(pictures[0], "the red block")
    assert session.turns[0].results[0].rles == expected.rles


def test_a_mask_below_the_calibrated_score_is_not_there(tiny_model, pictures):
    network = copy.deepcopy(tiny_model.model)
    network.config.no_target_threshold = 1.0
    strict = Self1E(network, tiny_model.processor)
    (event,) = (e for e in strict.session(pictures[0]).ask("red", mode="segment") if isinstance(e, Mask | NotThere))
    assert isinstance(event, NotThere)
    assert event.segmentation.is_empty.all()
    assert 0 < event.score < 1
    lenient = strict.session(pictures[0], reject=False)
    assert any(isinstance(e, Mask) for e in lenient.ask("red", mode="segment"))
    (event,) = (
        e
        for e in tiny_model.session(pictures[0], threshold=1e6).ask("red", mode="segment")
        if isinstance(e, Mask | NotThere)
    )
    assert isinstance(event, NotThere)
    assert event.score == 0


# ---------------------------------------------------------------------- who decides


def test_auto_follows_the_model(tiny_model, pictures):
    events = list(rigged(tiny_model, seg=50.0).session(pictures[0], max_new_tokens=1).ask("Where?"))
    assert (done(events).decision, done(events).mode) == ("segment", "auto")
    assert done(events).probability > 0.99
    events = list(rigged(tiny_model, end=50.0).session(pictures[0]).ask("Where?"))
    assert done(events) == dataclasses.replace(done(events), decision="text", stopped="end", new_tokens=0, text="")
    assert done(events).probability < 0.01
    assert len(events) == 1


def test_segment_masks_and_text_does_not_whatever_the_model_wants(tiny_model, pictures):
    session = rigged(tiny_model, end=50.0).session(pictures[0])
    events = list(session.ask("red", mode="segment"))
    assert sum(isinstance(event, Mask | NotThere) for event in events) == 1
    assert (done(events).decision, done(events).text) == ("segment", "[SEG].")
    assert done(events).probability < 0.01  # the model's own view
    events = list(rigged(tiny_model, seg=50.0).session(pictures[0], max_new_tokens=4).ask("Where?", mode="text"))
    assert all(isinstance(event, TextDelta | Done) for event in events)
    assert (done(events).decision, done(events).new_tokens) == ("text", 4)
    assert "[SEG]" not in done(events).text
    assert done(events).probability > 0.99


def test_the_probability_is_that_of_the_decisive_step(wide_model, pictures):
    with Watched(wide_model) as watched:
        events = list(wide_model.session(pictures[0], max_new_tokens=6).ask("What?", mode="text"))
    seg = wide_model.processor.seg_token_id
    shares = [float(logits.softmax(-1)[seg]) for logits in watched.logits]
    assert len(shares) == 6
    assert done(events).probability == pytest.approx(max(shares))


def test_words_come_as_they_are_written(tiny_model, pictures):
    session = tiny_model.session(pictures[2], max_new_tokens=20)
    events = list(session.ask("What is it?", mode="text"))
    words = [event.text for event in events if isinstance(event, TextDelta)]
    assert len(words) > 5
    assert all(words)
    assert "".join(words) == done(events).text == session.turns[0].text


def dictate(session, monkeypatch, ids):
    """Let an answer be these tokens."""
    left = iter([*ids, session.model.processor.turn_end_id])

    def next_logits(text):
        logits = torch.zeros(session.model.model.config.text_config.vocab_size)
        logits[next(left)] = 50.0
        return logits

    monkeypatch.setattr(session._text, "next_logits", next_logits)


def test_letters_come_whole_however_many_tokens_they_take(tiny_model, pictures, monkeypatch):
    session = tiny_model.session(pictures[0])
    words = "é 漢字 👩‍🚀\ń 🇩🇪"
    ids = tiny_model.processor.tokenizer.encode(words, add_special_tokens=False)
    assert len(ids) == len(words.encode())
    dictate(session, monkeypatch, ids)
    *deltas, end = session.ask("Say it.")
    assert "".join(event.text for event in deltas) == end.text == words
    assert not any("\ufffd" in event.text for event in deltas)
    assert len(deltas) == len(words)


@pytest.mark.parametrize("tail", [b"", b"!", b"[SEG]"])
def test_bytes_that_are_no_letter_are_told_once(tiny_model, pictures, monkeypatch, tail):
    session = tiny_model.session(pictures[0])
    tokenizer = tiny_model.processor.tokenizer
    first, second = tokenizer.encode("é", add_special_tokens=False)
    rest = tokenizer.encode(tail.decode(), add_special_tokens=False)
    dictate(session, monkeypatch, [first, second, first, *rest])
    *events, end = session.ask("Say it.")
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == end.text == session.turns[0].text
    assert end.text == "é\ufffd" + tail.decode()


def test_words_that_were_told_are_not_taken_back(tiny_model, pictures, monkeypatch):
    """Decoders with byte fallback turn a letter that was whole into unknown ones when no letter follows it."""
    session = tiny_model.session(pictures[0])
    said = {1: "é", 2: "\ufffd\ufffd\ufffd", 3: "\ufffd\ufffd\ufffdb"}
    dictate(session, monkeypatch, [10, 11, 12])
    monkeypatch.setattr(type(tiny_model.processor.tokenizer), "decode", lambda self, ids, **_: said[len(ids)])
    *deltas, end = session.ask("Say it.")
    assert "".join(event.text for event in deltas) == end.text
    assert end.text.startswith("é")


# ---------------------------------------------------------------------- drawing words


def test_without_a_temperature_nothing_is_drawn(tiny_model, pictures):
    plain = tiny_model.session(pictures[0], max_new_tokens=12)
    seeded = tiny_model.session(pictures[0], max_new_tokens=12, temperature=0.0, seed=3)
    assert run(plain) == run(seeded)


def test_a_seed_repeats_a_conversation_and_another_does_not(tiny_model, pictures, tmp_path):
    settings = {"max_new_tokens": 12, "temperature": 1.5, "top_p": 0.9, "mode": "text"}
    asked = [("What?", None), ("What?", None), ("What?", None)]
    first, second, other = (tiny_model.session(pictures[0], seed=seed, **settings) for seed in (1, 1, 2))
    expected = run(first, asked)
    assert run(second, asked[:2]) == expected[:2]
    again = Session.load(second.save(tmp_path / "talk.json"), tiny_model, picture=pictures[0])
    assert again.sampling == first.sampling
    assert run(again, asked[2:])[0][:-1] == expected[2][:-1]
    assert run(other, asked) != expected
    greedy = tiny_model.session(pictures[0], max_new_tokens=12, mode="text")
    assert run(greedy, asked[:1]) != expected[:1]
    assert run(first, asked[:1], temperature=0)[0][-1].new_tokens  # although top_p is set


def test_drawn_words_are_of_the_text_mode_too(tiny_model, pictures):
    model = rigged(tiny_model, seg=50.0)
    session = model.session(pictures[0], max_new_tokens=30, temperature=3.0, seed=0)
    assert "[SEG]" not in done(list(session.ask("What?", mode="text"))).text
    events = list(session.ask("What?", max_new_tokens=2))
    assert done(events).decision == "segment"
    assert done(events).probability > 0.99  # at temperature 1: the model's own


def test_settings_change_from_turn_to_turn(tiny_model, pictures):
    session = tiny_model.session(pictures[0], max_new_tokens=3)
    session.change(mode="text", max_new_tokens=2, temperature=1.0, top_p=0.5, seed=1)
    assert done(list(session.ask("What?"))).new_tokens <= 2
    before = session.mode, session.max_new_tokens, session.sampling
    for wrong in ({"mode": "mask", "seed": 2}, {"top_p": 2, "mode": "auto"}, {"max_new_tokens": 0, "seed": 3}):
        with pytest.raises(SettingError):
            session.change(**wrong)
    assert (session.mode, session.max_new_tokens, session.sampling) == before
    session.mode = "mask"  # behind its back
    with pytest.raises(SettingError, match="mode='mask' is unknown"):
        session.ask("What?")
    session.mode, session.max_new_tokens = "text", 0
    with pytest.raises(SettingError, match="max_new_tokens=0"):
        session.ask("What?")
    with pytest.raises(SettingError, match=r"top_p=0\.5 has no effect"):
        tiny_model.session(pictures[0]).ask("What?", top_p=0.5)


# ---------------------------------------------------------------------- stopping


def test_closing_the_events_ends_the_turn_and_keeps_what_was_written(tiny_model, pictures):
    session = tiny_model.session(pictures[0], max_new_tokens=30)
    for _ in session.ask("What is it?", mode="text"):
        break
    (turn,) = session.turns
    assert turn.stopped == "cancelled"
    assert 0 < len(turn.answer_ids) < 30
    with Watched(tiny_model) as watched:
        after = done(list(session.ask("And?", mode="text")))
    assert watched.steps[0] == after.prompt_tokens
    assert session.num_tokens == len(conversation(session))


def test_another_thread_cancels_between_tokens(tiny_model, pictures):
    session = tiny_model.session(pictures[0], max_new_tokens=1000)
    session.cancel()  # nothing is being written, so nothing happens
    events = session.ask("What is it?", mode="text")
    next(events)
    thread = threading.Thread(target=session.cancel)
    thread.start()
    thread.join()
    assert done(list(events)).stopped == "cancelled"
    assert done(list(session.ask("Go on.", max_new_tokens=1))).stopped != "cancelled"


def test_one_turn_at_a_time(tiny_model, pictures):
    session = tiny_model.session(pictures[0])
    events = session.ask("What is it?", mode="text")
    next(events)
    with pytest.raises(SettingError, match="Another turn is being written"):
        next(session.ask("And this?"))
    events.close()
    assert done(list(session.ask("And this?", max_new_tokens=1)))


def test_a_turn_that_fails_is_as_if_not_asked(tiny_model, pictures, monkeypatch):
    session = tiny_model.session(pictures[0], max_new_tokens=3)
    run(session, DIALOGUE[:1])
    ids = list(session._ids)

    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(tiny_model, "read_rows", fail, raising=False)
    with pytest.raises(MemoryError):
        list(session.ask("red", mode="segment"))
    monkeypatch.undo()
    assert (len(session.turns), session._ids) == (1, ids)
    fresh = tiny_model.session(pictures[0], max_new_tokens=3)
    assert run(session, DIALOGUE[1:3])[1][:-1] == run(fresh, DIALOGUE[:3])[2][:-1]


@pytest.mark.parametrize("when", ["first", "later"])
def test_ctrl_c_ends_the_turn_and_keeps_what_was_written(tiny_model, pictures, monkeypatch, when):
    session = tiny_model.session(pictures[0], max_new_tokens=20)
    run(session, DIALOGUE[:1])
    tokens = session.num_tokens
    read, calls = session._text._read, []

    def interrupted(new):
        calls.append(new)
        if len(calls) == (1 if when == "first" else 4):
            raise KeyboardInterrupt
        return read(new)

    monkeypatch.setattr(session._text, "_read", interrupted)
    told = []
    with pytest.raises(KeyboardInterrupt):
        told.extend(session.ask("And where?", mode="text"))  # keeps what came before the error
    monkeypatch.undo()
    if when == "first":
        assert (len(session.turns), session.num_tokens) == (1, tokens)
    else:
        assert session.turns[1].stopped == "cancelled"
        assert len(session.turns[1].answer_ids) == 3
        assert session.turns[1].text == "".join(event.text for event in told)
    assert done(list(session.ask("Go on.", mode="text", max_new_tokens=2)))
    assert session.num_tokens == len(conversation(session))


def test_ctrl_c_while_a_mask_is_read_leaves_no_seg_without_one(tiny_model, pictures, monkeypatch):
    model = rigged(tiny_model, seg=50.0)
    session = model.session(pictures[0], max_new_tokens=5)
    read = []

    def interrupted(*args, **kwargs):
        if read:
            raise KeyboardInterrupt
        read.append(args)
        return Self1E.read_rows(model, *args, **kwargs)

    monkeypatch.setattr(model, "read_rows", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        list(session.ask("Show me."))
    (turn,) = session.turns
    assert list(turn.answer_ids) == [model.processor.seg_token_id]
    assert len(turn.results) == 1
    assert turn.text == "[SEG]"


def test_two_threads_take_turns_or_are_told(tiny_model, pictures):
    session = tiny_model.session(pictures[0], max_new_tokens=6, mode="text")
    refused, answered = [], []

    def talk(name):
        for number in range(6):
            try:
                answered.append(done(list(session.ask(f"{name} {number}?"))))
            except SettingError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=talk, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answered) + len(refused) == 18
    assert all("Another turn is being written" in told for told in refused)
    assert len(session.turns) == len(answered)
    assert session.num_tokens == len(conversation(session))


@pytest.mark.parametrize("move", ["type", "learn", "replace"])
def test_other_weights_end_a_conversation(tiny_model, pictures, tmp_path, move):
    model = Self1E(copy.deepcopy(tiny_model.model), tiny_model.processor)
    session = model.session(pictures[0], max_new_tokens=2)
    run(session, DIALOGUE[:2])
    with torch.no_grad():
        if move == "type":
            model.model.double()
        elif move == "learn":
            model.model.lm_head.weight.mul_(1.5)
        else:
            model.model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.model.lm_head.weight))
    with pytest.raises(SettingError, match="weights have changed or moved since this conversation began"):
        session.ask("And now?")
    assert len(session.turns) == 2
    if move == "type":  # as on another device: the numbers are the same, so the turns can be taken along
        again = Session.load(session.save(tmp_path / "talk.json"), model, picture=pictures[0])
        assert done(list(again.ask("And now?", mode="text")))


# ---------------------------------------------------------------------- memory


def test_the_stated_memory_is_what_the_cache_holds(tiny_model, wide_model, pictures):
    for model in (tiny_model, wide_model):
        session = model.session(pictures[0], max_new_tokens=4)
        run(session)
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in session._text._cache.layers)
        assert held == session.bytes_per_token * len(session._text)
        assert session.max_bytes == session.bytes_per_token * session.max_tokens


def test_bytes_per_token_of_a_published_size():
    from transformers import Qwen2Config

    config = Qwen2Config(hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2)
    assert bytes_per_token(config, torch.bfloat16) == 2 * 28 * 2 * 128 * 2  # InternVL3-2B


def test_long_conversations_drop_their_oldest_turns(wide_model, pictures):
    session = wide_model.session(pictures[0], max_new_tokens=4, max_tokens=300)
    dropped = []
    for number in range(12):
        events = list(session.ask(f"Question number {number}?", mode="segment" if number % 3 == 1 else "text"))
        dropped.append(done(events).dropped_turns)
        assert session.num_tokens <= session.max_tokens
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in session._text._cache.layers)
        assert held <= session.max_bytes
        if dropped[-1]:
            assert done(events).known_tokens == 0
    assert session.first_turn == sum(dropped) > 2
    assert dropped.count(0) > len(dropped) / 2  # room is made for several turns at once
    assert len(session.turns) == 12
    # What is left is a conversation of its own: another one that begins there goes on alike.
    again = wide_model.session(pictures[0], max_new_tokens=4, max_tokens=300)
    again.restore(session.turns[session.first_turn :], 0)
    assert again._ids == session._ids
    assert list(again.ask("More?", mode="text"))[:-1] == list(session.ask("More?", mode="text"))[:-1]


def test_making_room_reads_every_turn_once(tiny_model, pictures, monkeypatch):
    """Hundreds of short turns: reading all that are left for each that goes would take minutes."""
    session = tiny_model.session(pictures[0], max_new_tokens=1, max_tokens=8000, mode="text")
    run(session, [("Is it?", "text")] * 2)
    session.restore([*session.turns] * 70, 0)
    while session.num_tokens < 7900:
        run(session, [("Is it?", "text")])
    count = len(session.turns)
    read, calls = tiny_model.processor.tokenize_conversation, []
    with monkeypatch.context() as counting:
        counting.setattr(
            tiny_model.processor, "tokenize_conversation", lambda *a, **k: calls.append(a) or read(*a, **k)
        )
        dropped = done(list(session.ask("Is it? " * 30))).dropped_turns
    assert dropped > count / 3
    assert len(calls) < dropped + 10
    assert session.num_tokens == len(session._ids) <= 8000


def test_what_cannot_fit_is_refused_before_anything_is_dropped(tiny_model, pictures):
    session = tiny_model.session(pictures[0], max_new_tokens=4, max_tokens=300)
    run(session, DIALOGUE[:2])
    with pytest.raises(PromptError, match=r"question \(1\d\d\d\).*max_tokens=300: ask shorter"):
        session.ask("very " * 200)
    assert session.first_turn == 0
    with pytest.raises(PromptError, match="max_tokens=10"):
        tiny_model.session(pictures[0], max_tokens=10)


def test_a_turn_that_fails_drops_nothing(tiny_model, pictures, monkeypatch):
    session = tiny_model.session(pictures[0], max_new_tokens=4, max_tokens=300)
    while session.num_tokens < 230:
        run(session, [("What is it?", "text")])
    before = session.first_turn, list(session._ids)

    def fail(new):
        raise MemoryError

    with monkeypatch.context() as broken:
        broken.setattr(session._text, "_read", fail)
        with pytest.raises(MemoryError):
            list(session.ask("a question that is so long that the oldest have to leave", mode="text"))
    assert (session.first_turn, session._ids) == before
    events = list(session.ask("a question that is so long that the oldest have to leave", mode="text"))
    assert done(events).dropped_turns > 0
    assert session.num_tokens == len(session._ids) <= 300


def test_settings_that_cannot_work(tiny_model, pictures):
    with pytest.raises(SettingError, match="positions reach 32768"):
        tiny_model.session(pictures[0], max_tokens=40000)
    with pytest.raises(SettingError, match="mode='mask' is unknown; choose one of auto, segment, text"):
        check_mode("mask")
    with pytest.raises(SettingError, match="max_new_tokens=0"):
        tiny_model.session(pictures[0], max_new_tokens=0)
    session = tiny_model.session(pictures[0])
    with pytest.raises(PromptError, match="expected words"):
        session.ask("  ")
    with pytest.raises(SettingError, match="max_new_tokens=True"):
        session.ask("What?", max_new_tokens=True)
    for mode in ("text", "segment"):
        with pytest.raises(PromptError, match="half of a surrogate pair"):
            session.ask("caf\udce9", mode=mode)


# ---------------------------------------------------------------------- files


@pytest.fixture
def saved(tiny_model, pictures, tmp_path, monkeypatch):
    pictures[0].save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    session = tiny_model.session("picture.png", max_new_tokens=5, mode="text")
    run(session, DIALOGUE[:4])
    path = session.save(tmp_path / "talk.json")
    monkeypatch.chdir(tmp_path.parent)  # it is found from anywhere
    return session, path


def test_a_saved_conversation_goes_on_alike(tiny_model, saved):
    session, path = saved
    again = Session.load(path, tiny_model)
    assert again.turns == session.turns
    assert (again.mode, again.max_new_tokens, again.max_tokens) == ("text", 5, session.max_tokens)
    assert again._ids == session._ids
    assert again.turns[1].results[0].image is not None
    with Watched(tiny_model) as first:
        expected = list(session.ask("And now?"))
    with Watched(tiny_model) as second:
        found = list(again.ask("And now?"))
    assert found[:-1] == expected[:-1]
    torch.testing.assert_close(first.logits[0], second.logits[0], rtol=0, atol=1e-4)
    assert list(again.ask("blue", mode="segment"))[1] == list(session.ask("blue", mode="segment"))[1]


def test_a_file_says_what_it_is(saved):
    content = json.loads(saved[1].read_text("utf-8"))
    assert [turn["question"] for turn in content["turns"]] == [words for words, _ in DIALOGUE[:4]]
    rle = content["turns"][1]["masks"][0]["rle"]
    assert rle["size"] == [60, 90]
    assert content["picture"]["path"].endswith("picture.png")


def test_another_model_or_picture_is_refused(tiny_model, saved, pictures, tmp_path):
    _, path = saved
    other = copy.deepcopy(tiny_model.model)
    with torch.no_grad():
        other.lm_head.weight.add_(1.0)
    with pytest.raises(CheckpointError, match="load the model that it was"):
        Session.load(path, Self1E(other, tiny_model.processor))
    with pytest.raises(PictureError, match="is not the picture of this conversation"):
        Session.load(path, tiny_model, picture=pictures[1])
    assert Session.load(path, tiny_model, picture=pictures[0]).turns
    (tmp_path / "picture.png").unlink()
    with pytest.raises(PictureError, match="no longer at"):
        Session.load(path, tiny_model)


def test_a_picture_that_came_from_no_file_must_be_given(tiny_model, pictures, tmp_path):
    session = tiny_model.session(pictures[1], max_tiles=4, max_new_tokens=2)
    run(session, DIALOGUE[:2])
    path = session.save(tmp_path / "talk.json")
    with pytest.raises(PictureError, match="pass it as picture="):
        Session.load(path, tiny_model)
    again = Session.load(path, tiny_model, picture=np.asarray(pictures[1]))
    assert again.encoded.grid == session.encoded.grid
    with pytest.raises(PictureError, match="tiles"):
        Session.load(path, tiny_model, picture=tiny_model.encode(pictures[1], max_tiles=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("turns"), "lacks 'turns'"),
        (lambda content: content.update(version=9), "expected \\('self1e-session', 1\\)"),
        (lambda content: content.update(first_turn=7), "first_turn is 7"),
        (lambda content: content["turns"][0].update(mode="mask"), "mode='mask'"),
        (lambda content: content["turns"][0].update(answer_ids=[10**6]), "tokens that no answer can have"),
        (lambda content: content["turns"][0].update(question=""), "words are expected"),
        (lambda content: content["turns"][1]["masks"][0]["rle"].update(size=[1, 1]), "Mask 0 is 1x1"),
        (lambda content: content.update(settings=None), "is damaged"),
        (lambda content: content["settings"].update(reject="no"), "settings.reject is 'no'"),
        (lambda content: content["settings"].update(temperature=-1), "temperature=-1"),
        (lambda content: content["settings"].pop("threshold"), "lacks 'threshold'"),
        (lambda content: content["picture"].update(tiles=[1]), "is damaged"),
        (lambda content: content["picture"].update(tiles=[10**400, 1]), "is damaged"),
        (lambda content: content["picture"].update(path=7), "is damaged"),
        (lambda content: content.update(turns="none"), "where a list is expected"),
        (lambda content: content["turns"][0].update(answer_ids=[True]), "tokens that no answer can have"),
        (lambda content: content["turns"][0].update(answer_ids={"a": 1}), "where a list is expected"),
        (lambda content: content["turns"][0].update(stopped="never"), "stopped is 'never'"),
        (lambda content: content["turns"][0].update(adapter="half"), "adapter is 'half'"),
        (lambda content: content["turns"][0].update(text=None), "where text is expected"),
        (lambda content: content["turns"][0].update(probability=float("nan")), "probability is nan"),
        (lambda content: content["turns"][0].update(probability=7), "probability is 7"),
        (lambda content: content["turns"][1].update(masks=[]), "0 masks for 1 \\[SEG\\]"),
        (lambda content: content["turns"][1]["masks"][0].update(score=float("inf")), "scores holds inf"),
        (lambda content: content["turns"][1]["masks"][0].update(query=3), "words are expected"),
        (lambda content: content["turns"][1]["masks"][0]["rle"].update(counts="zzz"), "An RLE of size"),
        (lambda content: content["turns"][1]["masks"][0]["rle"].update(counts="\u00e9"), "is damaged"),
    ],
)
def test_damaged_files_are_refused(tiny_model, saved, change, message):
    content = json.loads(saved[1].read_text("utf-8"))
    change(content)
    saved[1].write_text(json.dumps(content), "utf-8")
    with pytest.raises(SettingError, match=message):
        Session.load(saved[1], tiny_model)


def test_a_half_written_file_is_refused_and_an_earlier_one_stays(tiny_model, saved, monkeypatch):
    session, path = saved
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        with pytest.raises(SettingError, match="is not JSON"):
            Session.load(path, tiny_model)
    path.write_bytes(whole)

    def fail(*args):
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr("pathlib.Path.replace", fail)
        with pytest.raises(OutputError, match=r"talk\.json: cannot be written: disk full"):
            session.save(path)
    with pytest.raises(OutputError, match="cannot be written: No such file"):
        session.save(path.parent / "no" / "talk.json")
    assert path.read_bytes() == whole
    assert [one.name for one in path.parent.glob(".*")] == []


def test_a_file_of_before_adapters_and_temperatures_is_read(tiny_model, saved):
    session, path = saved
    content = json.loads(path.read_text("utf-8"))
    for name in ("adapter", "temperature", "top_p", "seed"):
        del content["settings"][name]
    for turn in content["turns"]:
        del turn["adapter"]
    path.write_text(json.dumps(content), "utf-8")
    again = Session.load(path, tiny_model)
    assert (again.turns, again.adapter, again.sampling) == (session.turns, "on", session.sampling)


def test_numbers_of_numpy_can_be_saved(tiny_model, pictures, tmp_path):
    session = tiny_model.session(
        pictures[0], threshold=np.float32(0.25), temperature=np.float32(0.5), top_p=np.float64(0.5), seed=np.int32(4)
    )
    again = Session.load(session.save(tmp_path / "talk.json"), tiny_model, picture=pictures[0])
    assert (again.threshold, again.sampling) == (session.threshold, session.sampling)


def test_what_is_no_session_is_refused(tiny_model, tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe no")
    (tmp_path / "b.json").write_text("[1]")
    for name, message in (("a.json", "is not JSON"), ("b.json", "found format"), ("c.json", "cannot be read")):
        with pytest.raises(SettingError, match=message):
            Session.load(tmp_path / name, tiny_model)


# ---------------------------------------------------------------------- nano


@pytest.mark.skipif(not (loading.NANO / "model.safetensors").is_file(), reason="nano is missing")
def test_nano_talks_about_a_drawn_scene(tmp_path):
    model = self1e.load("nano", device="cpu")
    sample = Scenes("test", size_wh=(200, 200))[219]
    session = model.session(sample.image, max_new_tokens=16)
    target = sample.targets[0]
    turns = run(
        session,
        [
            ("What colour is the ring?", "auto"),
            (target.text, "segment"),
            ("Is there a star?", "text"),
            (sample.targets[1].text, "segment"),
            ("the elephant", "segment"),
        ],
    )
    assert [done(events).decision for events in turns][1:] == ["segment", "text", "segment", "segment"]
    assert all(0 <= done(events).probability <= 1 for events in turns)
    for number in (1, 3, 4):
        (result,) = session.turns[number].results
        assert result.size_wh == (200, 200)
    again = Session.load(session.save(tmp_path / "talk.json"), model, picture=sample.image)
    assert again.turns == session.turns
