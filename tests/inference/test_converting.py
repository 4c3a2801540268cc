"""Conversion: every origin to a complete folder, bit for bit, in bounded memory, whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import self1e
from self1e.errors import CheckpointError, SettingError
from self1e.inference.converting import convert
from self1e.model import Self1EForConditionalGeneration
from self1e.model.checkpoints import Weights, reference_state_dict

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(load_script):
    """Models of every language model's family, without a tokenizer."""
    return load_script("record_goldens")


def read(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.fixture(scope="module")
def tiny_state(tiny_model_folder):
    return read(tiny_model_folder)


@pytest.fixture
def origins(layouts, tiny_model_folder, base_tokenizer_folder, tmp_path):
    """One model in a layout: its folder, with the tokenizer of the base where it is foreign."""
    model = Self1EForConditionalGeneration.from_pretrained(tiny_model_folder, dtype=torch.float32)

    def make(origin, **settings):
        folder = tmp_path / origin
        if origin == "self1e":
            return tiny_model_folder
        plain = reference_state_dict(model)
        if origin == "published":
            layouts.published(folder, model, **settings)
        elif origin == "lora":
            layouts.published(folder, model, layouts.attach_lora(plain)[0], **settings)
        elif origin == "chat":
            config = layouts.chat_config(model.config, architecture="InternVLChatModel")
            rows = {n: t[:262] if "embed_tokens" in n or "lm_head" in n else t for n, t in plain.items()}
            config["llm_config"]["vocab_size"] = 262
            layouts.save(folder, config, layouts.without_mask_head(rows), **settings)
        layouts.copy_tokenizer(base_tokenizer_folder, folder)
        return folder

    return make


@pytest.mark.parametrize("origin", ["self1e", "published"])
def test_the_folder_is_complete_and_segments_as_before(origins, origin, tiny_model, pictures, tmp_path):
    done = convert(origins(origin), tmp_path / "out")
    found = self1e.load(tmp_path / "out", device="cpu")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "generation_config.json", "processor_config.json", "tokenizer.json"} < names
    assert (found.segment(pictures[0], "it").masks == tiny_model.segment(pictures[0], "it").masks).all()
    assert (done.tensors, done.num_files, done.is_base, done.num_adapters) == (85, 1, False, 0)
    assert done.nbytes == sum(t.numel() * t.element_size() for t in read(tmp_path / "out").values())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("shards", [1, 4])
def test_round_trips_are_bit_identical_in_both_directions(origins, tiny_state, tmp_path, shards):
    source = origins("published", shards=shards)
    convert(source, tmp_path / "ours", max_shard_size="30KB")
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 3
    assert_same(read(tmp_path / "ours"), tiny_state)
    convert(tmp_path / "ours", tmp_path / "back", layout="published", max_shard_size="60KB")
    assert_same(read(tmp_path / "back"), read(source))
    convert(tmp_path / "back", tmp_path / "again")
    assert_same(read(tmp_path / "again"), tiny_state)
    first, last = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "again"))
    assert first == last
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (back["model_type"], back["architectures"]) == ("internvl_chat", ["InternVL3SELF1E"])


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_other_families_go_both_ways(layouts, tiny, base_tokenizer_folder, tmp_path, family):
    config = tiny.tiny_config(family)
    config.text_config.vocab_size = 264
    model = Self1EForConditionalGeneration(config).bfloat16()
    layouts.published(tmp_path / "source", model)
    convert(tmp_path / "source", tmp_path / "ours", tokenizer=base_tokenizer_folder)
    assert_same(read(tmp_path / "ours"), model.state_dict())
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == "bfloat16"
    convert(tmp_path / "ours", tmp_path / "back", layout="published")
    assert_same(read(tmp_path / "back"), reference_state_dict(model))


def test_what_is_written_is_what_the_loader_gives(origins, tmp_path):
    """Two readers, one table of names: transformers' for plain folders, ours for tensors one by one."""
    source = origins("chat")
    convert(source, tmp_path / "out")
    found = read(tmp_path / "out")
    loaded = Self1EForConditionalGeneration.from_pretrained(source, dtype=torch.float32).state_dict()
    new = {name for name in loaded if name.startswith("mask_head.")}
    assert len(new) == 12
    assert_same({n: t for n, t in found.items() if n not in new}, {n: t for n, t in loaded.items() if n not in new})
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in loaded.items()}
    assert found["mask_head.expand_vision.linear_2.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert not found["mask_head.expand_vision.linear_2.bias"].any()
    convert(source, tmp_path / "same")
    assert_same(read(tmp_path / "same"), found)


# --------------------------------------------------------------------------- adapters


def test_adapters_are_merged_as_the_loader_merges_them(origins, tmp_path):
    source = origins("lora", shards=3)
    done = convert(source, tmp_path / "out", merge=True)
    assert (done.is_merged, done.lora_alpha) == (True, {3: 6.0})
    assert done.num_adapters == 2 * (7 + 4)
    found = Self1EForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    assert_same(read(tmp_path / "out"), found.state_dict())


def test_adapters_that_are_kept_survive_both_directions(origins, tmp_path):
    source = origins("lora")
    done = convert(source, tmp_path / "ours")
    assert not done.is_merged
    kept = read(tmp_path / "ours")
    module = "model.vision_tower.encoder.layer.1.attention."
    assert torch.equal(kept[module + "q_proj.lora_A.default.weight"], kept[module + "v_proj.lora_A.default.weight"])
    assert module + "k_proj.base_layer.bias" in kept
    convert(tmp_path / "ours", tmp_path / "back", layout="published")
    assert_same(read(tmp_path / "back"), read(source))
    expected = Self1EForConditionalGeneration.from_pretrained(source, dtype=torch.float32).state_dict()
    for folder in ("ours", "back"):
        found = Self1EForConditionalGeneration.from_pretrained(tmp_path / folder, dtype=torch.float32).state_dict()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # products of other shapes


def test_a_kept_adapter_keeps_its_alpha(origins, tmp_path):
    source = origins("lora")
    convert(source, tmp_path / "ours", lora_alpha=1.5)
    convert(tmp_path / "ours", tmp_path / "back", layout="published")
    expected = Self1EForConditionalGeneration.from_pretrained(source, lora_alpha=1.5, dtype=torch.float32).state_dict()
    for folder in ("ours", "back"):
        found = Self1EForConditionalGeneration.from_pretrained(tmp_path / folder, dtype=torch.float32).state_dict()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_adapters_that_cannot_be_joined_are_refused(origins, tmp_path):
    convert(origins("lora"), tmp_path / "ours")
    file = tmp_path / "ours" / "model.safetensors"
    tensors = load_file(file)
    name = "model.vision_tower.encoder.layer.1.attention.q_proj.lora_A.default.weight"
    from safetensors.torch import save_file

    save_file({**tensors, name: tensors[name] + 1}, file)
    with pytest.raises(CheckpointError, match=r"its parts have LoRAs of their own.*use --merge"):
        convert(tmp_path / "ours", tmp_path / "back", layout="published")
    module = name.removesuffix(".lora_A.default.weight")
    gone = {f"{module}.lora_A.default.weight", f"{module}.lora_B.default.weight"}
    save_file({n: t for n, t in tensors.items() if n not in gone}, file)
    with pytest.raises(CheckpointError, match=r"only some of its parts have a LoRA.*use --merge"):
        convert(tmp_path / "ours", tmp_path / "back", layout="published")
    assert not (tmp_path / "back").exists()
    assert convert(tmp_path / "ours", tmp_path / "back", layout="published", merge=True).is_merged


# --------------------------------------------------------------------------- errors


def test_a_source_without_tokenizer_needs_one(origins, base_tokenizer_folder, tmp_path):
    source = origins("published")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    with pytest.raises(CheckpointError, match=r"holds no tokenizer.*--tokenizer FOLDER_OR_HUB_NAME"):
        convert(source, tmp_path / "out")
    convert(source, tmp_path / "out", tokenizer=base_tokenizer_folder)
    assert self1e.load(tmp_path / "out", device="cpu").processor.seg_token_id == 262


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "publisht"}, "layout='publisht' is unknown.*Did you mean 'published'"),
        ({"max_shard_size": "big"}, "max_shard_size='big'; expected a size"),
        ({"max_shard_size": 12}, "at least 10KB"),
    ],
)
def test_settings_that_cannot_work_are_refused(tiny_model_folder, tmp_path, settings, message):
    with pytest.raises(SettingError, match=message):
        convert(tiny_model_folder, tmp_path / "out", **settings)
    assert list(tmp_path.iterdir()) == []


def test_switches_without_a_published_form_are_refused(make_tiny_model, tmp_path):
    source = make_tiny_model(tmp_path / "source", unshuffle="one", seg_readout="at")
    with pytest.raises(CheckpointError, match="no place for seg_readout='at', unshuffle='one'"):
        convert(source, tmp_path / "out", layout="published")
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_one_error_before_anything_is_written(layouts, tiny, tmp_path):
    model = tiny.tiny_model()
    tensors = reference_state_dict(model)
    tensors["vision_model.encoder.layers.0.attn.qkv.weight"] = torch.zeros(35, 12)
    tensors["model.language_model.norm.weight"] = torch.zeros(16)  # the same tensor under our name
    del tensors["mlp1.1.bias"]
    source = layouts.published(tmp_path / "source", model, tensors)
    expected = [
        "  missing: model.multi_modal_projector.linear_1.bias",
        "  unexpected: model.language_model.norm.weight",
        "  misshapen: vision_model.encoder.layers.0.attn.qkv.weight (35, 12) instead of (36, 12)",
    ]
    for attempt in (lambda: convert(source, tmp_path / "out"), lambda: load_strictly(source)):
        with pytest.raises(CheckpointError) as error:
            attempt()
        assert str(error.value).splitlines()[1:-1] == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def load_strictly(source):
    return Self1EForConditionalGeneration.from_pretrained(source)


def test_a_target_with_something_in_it_is_left_alone(tiny_model_folder, tmp_path):
    (tmp_path / "out").mkdir()
    convert(tiny_model_folder, tmp_path / "out")  # empty: taken
    before = read(tmp_path / "out")
    for target in (tmp_path / "out", tmp_path / "out" / "config.json"):
        with pytest.raises(SettingError, match="exists and is not an empty folder"):
            convert(tiny_model_folder, target)
    assert_same(read(tmp_path / "out"), before)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "cannot be read as an index"),
        ({"weight_map": {"a": "../model.safetensors"}}, "names ../model.safetensors; expected"),
        ({"weight_map": {"a": "pytorch_model.bin"}}, "names pytorch_model.bin; expected"),
        ({"weight_map": {"a": "gone.safetensors"}}, "shards are missing: gone.safetensors"),
    ],
)
def test_an_index_may_not_lead_astray(layouts, tiny, tmp_path, index, message):
    source = layouts.published(tmp_path / "source", tiny.tiny_model(), shards=2)
    text = index if isinstance(index, str) else json.dumps(index)
    (source / "model.safetensors.index.json").write_text(text)
    for attempt in (lambda: convert(source, tmp_path / "out"), lambda: load_strictly(source)):
        with pytest.raises(CheckpointError, match=message):
            attempt()


def test_a_truncated_file_is_told(layouts, tiny, tmp_path):
    source = layouts.published(tmp_path / "source", tiny.tiny_model())
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"is damaged or not a safetensors file.*copy it again"):
        convert(source, tmp_path / "out")


def test_the_same_tensor_in_two_shards_is_told(layouts, tiny, tmp_path):
    from safetensors.torch import save_file

    source = layouts.published(tmp_path / "source", tiny.tiny_model(), shards=2)
    second = load_file(source / "model-00002-of-00002.safetensors")
    save_file({**second, "mlp1.0.weight": torch.zeros(48)}, source / "model-00002-of-00002.safetensors")
    first = load_file(source / "model-00001-of-00002.safetensors")
    save_file({**first, "mlp1.0.weight": torch.zeros(48)}, source / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"tensors lie in two shards: mlp1\.0\.weight"):
        convert(source, tmp_path / "out")


# --------------------------------------------------------------------------- whole or not at all


@pytest.mark.parametrize("error", [RuntimeError("disk"), KeyboardInterrupt()])
def test_a_failure_half_way_leaves_nothing(tiny_model_folder, tmp_path, monkeypatch, error):
    reads = []
    original = Weights.read

    def failing(self, name, **settings):
        reads.append(name)
        if len(reads) == 40:
            assert any(tmp_path.glob(".out.*.partial/model-*.safetensors"))  # some shards are written
            raise error
        return original(self, name, **settings)

    monkeypatch.setattr(Weights, "read", failing)
    with pytest.raises(type(error)):
        convert(tiny_model_folder, tmp_path / "out", max_shard_size="30KB")
    assert list(tmp_path.iterdir()) == []


STOPS_HALF_WAY = """
import sys, time
from self1e.inference.converting import convert
from self1e.model.checkpoints import Weights
original, count = Weights.read, 0
def read(self, name, **settings):
    global count
    count += 1
    if count == 40:
        print("half way", flush=True)
        time.sleep(300)
    return original(self, name, **settings)
Weights.read = read
convert(sys.argv[1], sys.argv[2], max_shard_size="30KB")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_kill_half_way_leaves_no_folder_and_is_no_obstacle(tiny_model_folder, tiny_state, tmp_path):
    command = [sys.executable, "-c", STOPS_HALF_WAY, str(tiny_model_folder), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half way\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.")
    assert left.name.endswith(".partial")
    convert(tiny_model_folder, tmp_path / "out")
    assert_same(read(tmp_path / "out"), tiny_state)


MEASURES = """
import sys
from pathlib import Path
from self1e.inference.converting import convert

def kilobytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))

target, warm, *sources = sys.argv[1:]
convert(warm, target + "-warm")  # imports, and what they need
for index, source in enumerate(sources):
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest use so far
    before = kilobytes("VmRSS")
    convert(source, f"{target}-{index}", merge=True)
    print(kilobytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="nobody says the highest use of memory")
def test_memory_stays_far_below_the_size_of_the_checkpoint(layouts, tiny, tiny_model_folder, tmp_path):
    """90 MB in one file and in many, LoRA merged, written as one file: a few tensors of 2 MB at a time."""
    config = tiny.tiny_config()
    text = config.text_config
    text.vocab_size, text.hidden_size, text.intermediate_size, text.num_hidden_layers = 264, 256, 2048, 12
    text.head_dim = 64
    text.layer_types = ["full_attention"] * 12
    with torch.device("meta"):
        model = Self1EForConditionalGeneration(config)
    state = {name: torch.zeros(tensor.shape) for name, tensor in model.state_dict().items()}
    tensors, _ = layouts.attach_lora(reference_state_dict(model, state))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert size > 90e6
    sources = []
    for shards in (1, 12):
        sources.append(layouts.published(tmp_path / f"source-{shards}", model, tensors, shards=shards))
        layouts.copy_tokenizer(tiny_model_folder, sources[-1])
    code = [sys.executable, "-c", MEASURES, tmp_path / "out", tiny_model_folder, *sources]
    done = subprocess.run([str(part) for part in code], capture_output=True, text=True, check=True)
    grown = [int(line) * 1024 for line in done.stdout.split()]
    assert len(grown) == 2
    assert max(grown) < size / 3
    for index in range(2):
        assert sum(file.stat().st_size for file in (tmp_path / f"out-{index}").glob("*.safetensors")) > 85e6
