"""``self1e convert`` and ``self1e info`` on every origin: what they print, and how they fail."""

from __future__ import annotations

import json

import pytest
import torch

import self1e
from self1e.cli.main import main
from self1e.model import Self1EForConditionalGeneration
from self1e.model.checkpoints import reference_state_dict


@pytest.fixture
def run(capsys):
    """Run the command; returns status, stdout and stderr."""

    def run(*arguments):
        capsys.readouterr()  # what making the source printed
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture
def lora(layouts, tiny_model_folder, tmp_path):
    """A published folder with LoRA attached, and no tokenizer."""
    model = Self1EForConditionalGeneration.from_pretrained(tiny_model_folder, dtype=torch.float32)
    return layouts.published(tmp_path / "lora", model, layouts.attach_lora(reference_state_dict(model))[0], shards=2)


def test_a_released_checkpoint_becomes_a_model(run, lora, base_tokenizer_folder, tmp_path, pictures):
    status, out, err = run("convert", lora, tmp_path / "out", "--merge", "--tokenizer", base_tokenizer_folder)
    assert (status, out) == (0, f"85 tensors, 0.00 GB in 1 file -> {tmp_path / 'out'}\n")
    assert err == "self1e: LoRA in 22 modules (rank 3, alpha 6): merged\n"
    assert len(self1e.load(tmp_path / "out", device="cpu").segment(pictures[0], "it")) == 1


def test_adapters_stay_unless_they_are_merged(run, lora, base_tokenizer_folder, tmp_path):
    settings = ("--tokenizer", base_tokenizer_folder, "--lora-alpha", 3, "--max-shard-size", "100KB")
    status, out, err = run("convert", lora, tmp_path / "out", *settings)
    assert status == 0
    assert " files -> " in out
    assert err == "self1e: LoRA in 22 modules (rank 3, alpha 3): kept; --merge merges them\n"


def test_back_to_the_published_names(run, tiny_model_folder, tmp_path):
    assert run("convert", tiny_model_folder, tmp_path / "out", "--to", "published")[0] == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["InternVL3SELF1E"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("convert", "{lora}", "{tmp}/out"), 1, "holds no tokenizer; released SELF1E weights come without"),
        (("convert", "{lora}", "{tmp}/lora"), 2, "exists and is not an empty folder"),
        (("convert", "{lora}", "{tmp}/out", "--to", "mine"), 2, "--to mine is unknown"),
        (("convert", "{tmp}/weights.bin", "{tmp}/out"), 1, "pickled weights only (weights.bin)"),
        (("convert", "./gone", "{tmp}/out"), 1, "no such folder"),
    ],
)
def test_errors_are_one_line(run, lora, tmp_path, arguments, status, message):
    torch.save({}, tmp_path / "weights.bin")
    found, out, err = run(*(part.format(lora=lora, tmp=tmp_path) for part in arguments))
    assert (found, out) == (status, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_info_on_every_origin(run, layouts, tiny_model_folder, base_tokenizer_folder, lora, tmp_path):
    status, out, _ = run("info", lora)
    assert status == 0
    assert "in the published layout" in out
    assert "no tokenizer in the folder" in out
    model = Self1EForConditionalGeneration.from_pretrained(tiny_model_folder, dtype=torch.float32)
    config = layouts.chat_config(model.config, architecture="InternVLChatModel")
    base = layouts.save(tmp_path / "base", config, layouts.without_mask_head(reference_state_dict(model)))
    layouts.copy_tokenizer(base_tokenizer_folder, base)
    status, out, _ = run("info", base)
    assert status == 0
    assert "a base, its mask head is new" in out
    facts = json.loads(run("info", base, "--json")[1])
    assert facts["origin"] == "chat"
    assert facts["vocabulary"] == {"rows": 264, "tokens": 263, "[SEG]": 262, "<IMG_CONTEXT>": 261}
