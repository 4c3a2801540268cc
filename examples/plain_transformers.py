"""The same model through transformers alone: a prompt that ends with [SEG], one forward pass, a mask.

python examples/plain_transformers.py [FOLDER]
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import self1e.model  # registers the classes
from self1e.inference.loading import NANO

folder = sys.argv[1] if len(sys.argv) > 1 else str(NANO)
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
image = Image.open(Path(self1e.__file__).parent / "assets" / "astronaut.jpg").convert("RGB")

# The published question, with its space after the picture's newline.
question = " What is the person in this image? Please output segmentation mask."
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True) + "[SEG]"
inputs = processor(image, prompt, padding_side="right")  # masks need padding on the right
with torch.inference_mode():
    output = model(**inputs)
masks = processor.post_process_masks(output.mask_logits, [(image.height, image.width)])
print(
    f"{masks[0].shape[0]} mask of {masks[0].shape[1]} x {masks[0].shape[2]}, {masks[0].float().mean():.1%} foreground"
)
