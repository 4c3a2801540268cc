"""Foreign checkpoints: folders that hold a model of ours under other names, and no processor of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def find_foreign(name: Any, **hub: Any) -> Path | None:
    """Find the folder of a foreign checkpoint.

    Args:
        name: A folder, or a name on the hub; of a foreign repository all but the weights is downloaded.
        hub: Where on the hub: ``revision``, ``token`` ...

    Returns:
        Its local folder; None if it is not foreign, or has a processor of ours beside its weights.
    """
    local = Path(str(name)) / str(hub.get("subfolder") or "")
    if local.is_dir():
        if not (local / "config.json").is_file() or _has_own_processor(local):
            return None
        found = json.loads((local / "config.json").read_text(encoding="utf-8"))
        return local if _is_foreign(found) else None
    from transformers import PreTrainedConfig

    from self1e.model.checkpoints.configs import origin_of

    try:
        found, _ = PreTrainedConfig.get_config_dict(name, **hub)
    except OSError:  # not there at all: whoever reads the processor says so
        return None
    if not found or origin_of(found) == "self1e":
        return None
    from self1e.model.checkpoints.loading import download

    local = Path(download(str(name), with_weights=False, **hub)) / str(hub.get("subfolder") or "")
    return None if _has_own_processor(local) else local


def _is_foreign(found: Any) -> bool:
    """Other models' folders are no business of ours: they may hold a processor all the same."""
    return isinstance(found, dict) and ("llm_config" in found or found.get("model_type") == "internvl")


def _has_own_processor(folder: Path) -> bool:
    path = folder / "processor_config.json"
    if not path.is_file():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    return isinstance(found, dict) and found.get("processor_class") == "Self1EProcessor"
