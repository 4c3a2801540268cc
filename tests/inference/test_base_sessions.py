"""Conversations in which the base answers: its words to the bit, masks of the trained model, texts that never mix."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from transformers import DynamicCache, InternVLForConditionalGeneration

from self1e.errors import CheckpointError, SettingError
from self1e.inference.base_answers import base_answers, base_beside, load_with_base
from self1e.inference.session import Done, Mask, NotThere, Session, TextDelta

pytestmark = pytest.mark.usefixtures("one_thread")

QUESTION = "What is on the table?"
DIALOGUE = [  # question, mode, adapter
    (QUESTION, "text", "off"),
    ("the red block", "segment", "on"),
    ("And where?", "text", "off"),
    ("Why?", "text", "on"),
    ("Are you sure?", "text", "off"),
]


@pytest.fixture(scope="module")
def model(trained_folder, base_folder):
    return load_with_base(trained_folder, base_folder, device="cpu")


@pytest.fixture(scope="module")
def stock(base_folder):
    """The base as transformers loads it, without a line of ours."""
    return InternVLForConditionalGeneration.from_pretrained(base_folder, dtype=torch.float32).eval()


class Read:
    """What goes through a network as text, and what comes next, in one list of pairs."""

    def __init__(self, network):
        self.steps = []
        self._seen = network.register_forward_hook(self._keep, with_kwargs=True)

    def _keep(self, module, args, kwargs, output):
        self.steps.append((kwargs["input_ids"].clone(), output.logits[0, -1].clone()))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._seen.remove()


def run(session, dialogue=DIALOGUE, **settings):
    return [
        list(session.ask(words, mode=mode, adapter=adapter if mode == "text" else None, **settings))
        for words, mode, adapter in dialogue
    ]


def held(text):
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in text._cache.layers) if text._cache else 0


# ---------------------------------------------------------------------- whose words they are


def test_words_with_the_adapter_off_are_the_bases_bit_for_bit(model, stock, pictures):
    session = model.session(pictures[1], max_new_tokens=5, max_tiles=4)
    assert session.encoded.grid.num_tiles > 1
    session._text_of("off")  # made here, so that it can be watched
    with Read(session._base_text._model.model) as base:
        run(session)
    levels, _ = model.processor.image_processor.cut(session.encoded.image, 4)
    pixels = torch.from_numpy(model.processor.image_processor.normalise(levels))
    cache = DynamicCache(config=stock.config.text_config)
    assert len(base.steps) > 10
    with torch.inference_mode():
        for number, (ids, logits) in enumerate(base.steps):
            about = {} if number else {"pixel_values": pixels}
            output = stock(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **about)
            assert torch.equal(output.logits[0, -1], logits)
    # What it read is the conversation, with letters for what it does not know.
    read = torch.cat([ids for ids, _ in base.steps], dim=1)[0].tolist()
    seg = model.processor.seg_token_id
    assert seg in session._ids
    assert max(read) < len(stock.get_output_embeddings().weight)
    words = model.processor.tokenizer.decode(read)
    assert words == model.processor.tokenizer.decode(session._ids)[: len(words)]
    assert "[SEG]" in words


def test_the_first_answer_is_the_bases(model, pictures):
    with base_answers(model):
        expected = model.chat(pictures[0], QUESTION, max_new_tokens=8)
    as_trained = model.chat(pictures[0], QUESTION, max_new_tokens=8)
    session = model.session(pictures[0], mode="text", adapter="off", max_new_tokens=8)
    *_, done = session.ask(QUESTION)
    assert done.text.strip() == expected != as_trained
    assert (done.adapter, done.decision, done.probability) == ("off", "text", 0.0)
    *_, done = session.ask(QUESTION, adapter="on")
    assert done.adapter == "on"
    assert done.probability > 0


def test_words_as_trained_are_the_same_whether_the_base_answers_in_between_or_not(model, pictures):
    one, other = (model.session(pictures[0], max_new_tokens=4) for _ in range(2))
    run(one)
    other.restore(one.turns[:3], 0)
    expected = list(other.ask("Why?", mode="text"))
    found = [event for event in expected if isinstance(event, TextDelta)]
    assert "".join(event.text for event in found) == one.turns[3].text


def test_masks_are_the_trained_models(model, pictures):
    session = model.session(pictures[0], max_new_tokens=4)
    *_, after = run(session, [*DIALOGUE[:1], ("the red block", "segment", "on")])
    mask = next(event for event in after if isinstance(event, Mask | NotThere))
    again = model.session(pictures[0], max_new_tokens=4)
    again.restore(session.turns[:1], 0)
    assert (
        next(event for event in again.ask("the red block", mode="segment") if isinstance(event, Mask | NotThere))
        == mask
    )
    alone = model.session(pictures[0], adapter="off").ask("the red block", mode="segment")
    expected = model.segment(pictures[0], "the red block")
    assert next(event for event in alone if isinstance(event, Mask)).segmentation.rles == expected.rles


def test_each_text_computes_every_token_once(model, pictures):
    session = model.session(pictures[0], max_new_tokens=4)
    session._text_of("off")
    with Read(session._base_text._model.model) as base, Read(model.model) as trained:
        turns = run(session)
    dones = [events[-1] for events in turns]
    assert [done.adapter for done in dones] == ["off", "on", "off", "on", "off"]
    assert dones[1].known_tokens == 0  # the trained model has not read anything yet
    assert all(done.known_tokens > 0 for done in dones[2:])
    assert sum(ids.shape[1] for ids, _ in base.steps) == len(session._base_text)
    as_text = [ids.shape[1] for ids, _ in trained.steps if not (ids == model.processor.seg_token_id).any()]
    assert sum(as_text) <= len(session._text)


# ---------------------------------------------------------------------- beside each other


def test_the_trained_model_goes_on_beside_its_base(model, pictures):
    before = model.segment(pictures[0], "cup", return_logits=True).mask_logits
    learns = {name for name, parameter in model.model.named_parameters() if parameter.requires_grad}
    events = model.session(pictures[0], mode="text", adapter="off", max_new_tokens=20).ask(QUESTION)
    next(events)
    found = []

    def ask():
        found.append(model.segment(pictures[0], "cup", return_logits=True).mask_logits)

    thread = threading.Thread(target=ask)
    thread.start()
    *_, done = events
    thread.join()
    assert isinstance(done, Done)
    assert (found[0] == before).all()
    assert {name for name, parameter in model.model.named_parameters() if parameter.requires_grad} == learns


def test_the_base_beside_shares_every_tensor_and_makes_no_mask(model, pictures):
    base = base_beside(model)
    own = {parameter.data_ptr() for parameter in model.model.parameters()}
    own |= {tensor.data_ptr() for tensor in model.model._base_tensors.originals.values()}
    assert {parameter.data_ptr() for parameter in base.model.parameters()} <= own
    with pytest.raises(SettingError, match="the base model knows no"):
        base.segment(pictures[0], "cup")
    with pytest.raises(SettingError, match="encoded by another model"):
        base.chat(model.encode(pictures[0]), QUESTION)


def test_one_base_serves_all_conversations_of_its_weights(trained_folder, base_folder, pictures):
    model = load_with_base(trained_folder, base_folder, device="cpu")
    texts = [model.session(pictures[0])._text_of("off") for _ in range(2)]
    assert texts[0]._model is texts[1]._model is base_beside(model)
    with torch.no_grad():
        model.model.lm_head.weight.add_(1.0)
    assert base_beside(model) is not texts[0]._model
    gone = weakref.ref(base_beside(model))
    del model, texts
    gc.collect()
    assert gone() is None


def test_a_model_in_training_has_its_base_beside_it(base_folder):
    from self1e.inference.base_answers import remember_base
    from self1e.inference.segmenter import Self1E
    from self1e.model import Self1EForConditionalGeneration
    from self1e.processing.processor import Self1EProcessor
    from self1e.training.adapters import attach_adapters
    from self1e.training.recipes.settings import AdapterSettings

    network = Self1EForConditionalGeneration.from_pretrained(base_folder)
    attach_adapters(network, AdapterSettings(rank=3, input_embeddings="seg", output_embeddings="seg"))
    remember_base(network, base_folder)
    learns = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    model = Self1E(network, Self1EProcessor.from_base(base_folder, tile_size=56, image_seq_length=4))
    base = base_beside(model)
    assert {name for name, parameter in network.named_parameters() if parameter.requires_grad} == learns
    ids = torch.arange(200, 230)[None]
    with torch.no_grad():
        found = base.model(input_ids=ids, dual_perception=False).logits
        with base_answers(model):
            assert torch.equal(model.model(input_ids=ids, dual_perception=False).logits, found)


# ---------------------------------------------------------------------- memory, files


def test_two_texts_stay_within_the_stated_memory(model, pictures):
    session = model.session(pictures[0], max_new_tokens=4, max_tokens=300)
    assert session.max_bytes == 2 * 300 * session.bytes_per_token
    dropped = 0
    for number in range(15):
        words, mode, adapter = DIALOGUE[number % 5]
        *_, done = session.ask(words, mode=mode, adapter=adapter if mode == "text" else None)
        dropped += done.dropped_turns
        for text in (session._text, session._base_text):
            assert held(text) <= session.max_bytes / 2
            assert held(text) == len(text) * session.bytes_per_token
    assert dropped == session.first_turn > 2


def test_a_conversation_with_the_base_is_saved_and_goes_on(model, pictures, tmp_path):
    session = model.session(pictures[0], mode="text", adapter="off", max_new_tokens=4)
    run(session)
    again = Session.load(session.save(tmp_path / "talk.json"), model, picture=pictures[0])
    assert again.turns == session.turns
    assert [turn.adapter for turn in again.turns] == ["off", "on", "off", "on", "off"]
    assert again.adapter == "off"
    assert list(again.ask("And now?"))[:-1] == list(session.ask("And now?"))[:-1]


# ---------------------------------------------------------------------- refusals


def test_a_merged_model_has_no_base_to_ask(tiny_model, pictures):
    with pytest.raises(CheckpointError, match="its adapters are merged into the weights"):
        tiny_model.session(pictures[0], adapter="off")
    session = tiny_model.session(pictures[0], max_new_tokens=2)
    with pytest.raises(CheckpointError, match="--model CHECKPOINT --base BASE"):
        session.ask(QUESTION, mode="text", adapter="off")
    with pytest.raises(CheckpointError, match="merged"):
        session.change(adapter="off", mode="text")
    assert (session.adapter, session.mode, session.turns) == ("on", "auto", ())
    assert list(session.ask(QUESTION, mode="text"))


@pytest.mark.parametrize("mode", ["auto", "segment"])
def test_the_base_makes_no_masks_and_decides_on_none(model, pictures, mode):
    session = model.session(pictures[0], adapter="off", max_new_tokens=2)
    with pytest.raises(SettingError, match=f"adapter='off' with mode='{mode}': the base model knows no"):
        session.ask(QUESTION, mode=mode, adapter="off")
    *_, done = session.ask(QUESTION, mode=mode)  # the session's own choice is for words only
    assert done.adapter == "on"
    with pytest.raises(SettingError, match="adapter='maybe' is unknown; choose on"):
        session.ask(QUESTION, adapter="maybe")


def test_adapters_merged_in_memory_end_the_bases_part(trained_folder, base_folder, pictures):
    from peft.tuners.lora import LoraLayer

    model = load_with_base(trained_folder, base_folder, device="cpu")
    session = model.session(pictures[0], adapter="off", mode="text", max_new_tokens=2)
    assert list(session.ask(QUESTION))
    next(module for module in model.model.modules() if isinstance(module, LoraLayer)).merge()
    with pytest.raises(CheckpointError, match="merged in memory"):
        session.ask(QUESTION)


def test_the_bases_text_counts_as_well(model, pictures):
    session = model.session(pictures[0], max_new_tokens=5)
    list(session.ask("What?", mode="text"))
    alone = session.num_bytes
    list(session.ask("What?", mode="text", adapter="off"))
    assert session.num_bytes == 2 * session.bytes_per_token * session.num_tokens > 2 * alone
    assert session.num_bytes <= session.max_bytes
