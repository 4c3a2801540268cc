"""Checkpoints of any origin: read strictly, written in our own names or the published ones.

Four origins are read through one call, `Self1EForConditionalGeneration.from_pretrained`:

* our own, which is `transformers`' InternVL plus ``mask_head``;
* the published one (InternVLChat plus three ``combine_decode_proj*`` MLPs, METHOD 1.1), with Qwen2, Qwen3, Llama or
  InternLM2 as its language model, in one file or in shards, merged or with LoRA still attached;
* original InternVLChat repositories, where the mask head is new;
* both ``-hf`` layouts of InternVL, likewise.

A configuration becomes one of ours in `configs`; names and shapes are a table of disjoint rules in `names`, one per
leaf, so that `reference_state_dict` can walk it backwards, bit for bit; `weights` reads tensor by tensor.
"""

from self1e.model.checkpoints.configs import normalise_config, origin_of, published_config, read_config
from self1e.model.checkpoints.names import (
    FuseGroupedRows,
    SplitGroupedRows,
    our_names,
    reference_rules,
    reference_state_dict,
)
from self1e.model.checkpoints.strict import check_loaded, refuse_pickles
from self1e.model.checkpoints.vocabulary import resize_vocabulary
from self1e.model.checkpoints.weights import Weights

__all__ = [
    "FuseGroupedRows",
    "SplitGroupedRows",
    "Weights",
    "check_loaded",
    "normalise_config",
    "origin_of",
    "our_names",
    "published_config",
    "read_config",
    "reference_rules",
    "reference_state_dict",
    "refuse_pickles",
    "resize_vocabulary",
]
