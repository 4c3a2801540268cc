"""``--vqa-adapter``: the same questions to the model as trained and to its base."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

from self1e.cli.main import main
from self1e.errors import SettingError
from self1e.evaluation.benchmarks import vqa
from self1e.evaluation.vqa_adapter import check_adapter

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_model, base_tokenizer_folder, layouts):
    """A base of 262 words, and a training checkpoint of it."""
    from self1e.model import Self1EForConditionalGeneration
    from self1e.processing.processor import Self1EProcessor
    from self1e.training.adapters import attach_adapters
    from self1e.training.recipes.settings import AdapterSettings

    config = tiny_model.model.config
    text = config.text_config.to_dict() | {"vocab_size": 262}
    settings = {"image_token_id": config.image_token_id, "image_seq_length": 4, "tie_word_embeddings": False}
    stock = InternVLConfig(vision_config=config.vision_config.to_dict(), text_config=text, **settings)
    torch.manual_seed(3)
    base = tmp_path_factory.mktemp("vqa") / "base"
    InternVLForConditionalGeneration(stock).save_pretrained(base)
    for path in base_tokenizer_folder.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    model = attach_adapters(Self1EForConditionalGeneration.from_pretrained(base), AdapterSettings(rank=2, dropout=0.0))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape)
    trained = layouts.save(base.parent / "trained", model.config.to_dict(), model.state_dict())
    Self1EProcessor.from_base(base, tile_size=56, image_seq_length=4).save_pretrained(trained)
    return trained, base


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def said(out):
    [path] = (out / "scenes-questions-test" / "gen").glob("rows-*.jsonl")
    header, *rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return header, {row["id"]: row["prediction"] for row in rows}


def test_on_and_off_answer_differently_and_are_never_mixed(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vqa, "SCENES", 2)
    trained, base = folders
    common = ("eval", "scenes-questions/test", "--model", trained, "--base", base, "--device", "cpu")
    assert run(*common, "--out", tmp_path / "on") == 0
    assert run(*common, "--out", tmp_path / "off", "--vqa-adapter", "off") == 0
    (on, as_trained), (off, as_base) = said(tmp_path / "on"), said(tmp_path / "off")
    assert as_trained.keys() == as_base.keys()
    assert as_trained != as_base
    assert "adapter off" in off["model"]
    assert "adapter off" not in on["model"]
    assert run(*common, "--out", tmp_path / "on", "--vqa-adapter", "off") == 1
    assert "rows of another run" in capsys.readouterr().err


def test_a_merged_model_is_refused(tiny_model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vqa, "SCENES", 1)
    arguments = ("eval", "scenes-questions/test", "--model", tiny_model_folder, "--out", tmp_path, "--device", "cpu")
    assert run(*arguments, "--vqa-adapter", "off") == 1
    assert "its adapters are merged into the weights" in capsys.readouterr().err


def test_masks_are_not_asked_of_the_base():
    with pytest.raises(SettingError, match="refcoco/val need them"):
        check_adapter("off", ["pope", "refcoco/val"])
    with pytest.raises(SettingError, match=r"choose on \(as trained\) or off"):
        check_adapter("maybe", ["pope"])
    check_adapter("on", ["pope", "refcoco/val"])
