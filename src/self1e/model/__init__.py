"""The model, and its registration with the Auto classes of `transformers`."""

from transformers import AutoModel, AutoModelForImageTextToText

from self1e.configuration import Self1EConfig
from self1e.model.modeling import Self1EForConditionalGeneration, Self1EOutput, VisionFeatures

AutoModel.register(Self1EConfig, Self1EForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(Self1EConfig, Self1EForConditionalGeneration, exist_ok=True)

__all__ = ["Self1EConfig", "Self1EForConditionalGeneration", "Self1EOutput", "VisionFeatures"]
