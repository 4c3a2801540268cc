"""Names of the published checkpoints, merged and with LoRA attached, as the authors' code wrote them."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from self1e.model import Self1EForConditionalGeneration
from self1e.model.checkpoints import reference_state_dict

pytestmark = pytest.mark.usefixtures("one_thread")


def without_numbers(names) -> set[str]:
    """Layer numbers as ``{i}``."""
    return {re.sub(r"\.layers\.\d+\.", ".layers.{i}.", name) for name in names}


@pytest.fixture
def families(golden, function_file):
    """By family: names (merged, with LoRA), published configuration, tensors."""
    names = json.loads(function_file("parameter_names.json").read_text(encoding="utf-8"))
    found = {}
    for family, lists in names.items():
        about = json.loads((golden / "weights" / f"{family}.json").read_text(encoding="utf-8"))
        is_internlm2 = lists["architecture"] == "InternLM2ForCausalLM"
        config = {
            **about["model_config"],
            "model_type": "internvl_chat",
            "architectures": ["InternVL2SELF1E" if is_internlm2 else "InternVL3SELF1E"],
        }
        found[family] = (lists, config, load_file(golden / "weights" / f"{family}.safetensors"))
    return found


def test_every_family_loads_with_lora_attached(families, layouts, tmp_path):
    assert families
    for family, (lists, config, plain) in families.items():
        attached, products = layouts.attach_lora(plain)
        assert without_numbers(plain) == set(lists["merged"])
        assert without_numbers(attached) == set(lists["with_lora"])
        folder = layouts.save(tmp_path / family, config, attached)
        model = Self1EForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        found, expected = reference_state_dict(model), layouts.merged(plain, products)
        assert found.keys() == plain.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor.double(), expected[name].double(), rtol=1e-6, atol=1e-6)


def test_an_adapter_of_zeros_changes_no_bit(families, layouts, tmp_path):
    for family, (_, config, plain) in families.items():
        attached = {n: t * 0 if "lora_B" in n else t for n, t in layouts.attach_lora(plain)[0].items()}
        folder = layouts.save(tmp_path / family, config, attached)
        found = reference_state_dict(Self1EForConditionalGeneration.from_pretrained(folder, dtype=torch.float32))
        assert found.keys() == plain.keys()
        assert [name for name in plain if not torch.equal(found[name], plain[name])] == []
