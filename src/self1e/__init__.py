"""self1e: ask a vision-language model for a thing, get its mask.

    import self1e

    model = self1e.load("nano")
    result = model.segment("street.jpg", ["the person", "the footwear"])
    result.overlay().save("street.masks.png")

Everything here is imported when it is first used: ``import self1e`` costs milliseconds, torch and transformers
cost seconds. Importing ``self1e.model`` registers the classes with transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from self1e.configuration import Self1EConfig
    from self1e.errors import (
        CheckpointError,
        DatasetError,
        MissingDependencyError,
        OutputError,
        PictureError,
        PromptError,
        Self1EError,
        SettingError,
        ShortageError,
        TrainingError,
    )
    from self1e.inference.folder import FolderReport, segment_folder
    from self1e.inference.parts import PartOptions
    from self1e.inference.segmenter import EncodedPicture, Self1E, load
    from self1e.inference.semantic import SemanticMap
    from self1e.inference.session import Session
    from self1e.model.modeling import Self1EForConditionalGeneration
    from self1e.processing.image import Self1EImageProcessor
    from self1e.processing.limits import PictureLimits
    from self1e.processing.pictures import open_picture
    from self1e.processing.processor import Self1EProcessor
    from self1e.structures import Segmentation, TileGrid

    __version__: str

_HOME = {
    "load": "self1e.inference.segmenter",
    "Self1E": "self1e.inference.segmenter",
    "EncodedPicture": "self1e.inference.segmenter",
    "Session": "self1e.inference.session",
    "Segmentation": "self1e.structures",
    "SemanticMap": "self1e.inference.semantic",
    "PartOptions": "self1e.inference.parts",
    "TileGrid": "self1e.structures",
    "Self1EConfig": "self1e.configuration",
    "Self1EForConditionalGeneration": "self1e.model",
    "Self1EProcessor": "self1e.processing.processor",
    "Self1EImageProcessor": "self1e.processing.image",
    "Self1EError": "self1e.errors",
    "SettingError": "self1e.errors",
    "PictureError": "self1e.errors",
    "PromptError": "self1e.errors",
    "CheckpointError": "self1e.errors",
    "DatasetError": "self1e.errors",
    "MissingDependencyError": "self1e.errors",
    "OutputError": "self1e.errors",
    "ShortageError": "self1e.errors",
    "TrainingError": "self1e.errors",
    "PictureLimits": "self1e.processing.limits",
    "open_picture": "self1e.processing.pictures",
    "segment_folder": "self1e.inference.folder",
    "FolderReport": "self1e.inference.folder",
}

__all__ = [
    "CheckpointError",
    "DatasetError",
    "EncodedPicture",
    "FolderReport",
    "MissingDependencyError",
    "OutputError",
    "PartOptions",
    "PictureError",
    "PictureLimits",
    "PromptError",
    "Segmentation",
    "Self1E",
    "Self1EConfig",
    "Self1EError",
    "Self1EForConditionalGeneration",
    "Self1EImageProcessor",
    "Self1EProcessor",
    "SemanticMap",
    "Session",
    "SettingError",
    "ShortageError",
    "TileGrid",
    "TrainingError",
    "__version__",
    "load",
    "open_picture",
    "segment_folder",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: Any = version("self1e")
        except PackageNotFoundError:  # run from a source tree that is not installed
            value = "0+unknown"
    elif name in _HOME:
        from importlib import import_module

        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'self1e' has no attribute {name!r}")
    globals()[name] = value  # next time without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
