"""The model, and its registration with the Auto classes and the pipelines of `transformers`."""

from contextlib import suppress

from transformers import AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

from self1e.configuration import Self1EConfig
from self1e.inference import pipeline
from self1e.model.modeling import Self1EForConditionalGeneration, Self1EOutput, VisionFeatures
from self1e.processing.image import Self1EImageProcessor
from self1e.processing.processor import Self1EProcessor

AutoModel.register(Self1EConfig, Self1EForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(Self1EConfig, Self1EForConditionalGeneration, exist_ok=True)
with suppress(ImportError):  # transformers 5.17 lets nobody touch this class without torchvision; ours needs none
    AutoImageProcessor.register(Self1EConfig, slow_image_processor_class=Self1EImageProcessor, exist_ok=True)
AutoProcessor.register(Self1EConfig, Self1EProcessor, exist_ok=True)
pipeline.register(Self1EForConditionalGeneration)

__all__ = ["Self1EConfig", "Self1EForConditionalGeneration", "Self1EOutput", "VisionFeatures"]
