"""Put a finished run of the recipe `nano` into the package: weights, log, learning curve, model card.

python scripts/package_nano.py runs/nano
python -m self1e.evaluation.nano --data DATA        # then measure it, ...
python scripts/package_nano.py runs/nano --card-only  # ... and write the figures into the card
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "src" / "self1e" / "assets" / "nano"
RESULTS = ROOT / "docs" / "results"
MOST_BYTES = 15_000_000
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def copy_model(run: Path) -> None:
    """Copy what loading needs, and nothing else."""
    NANO.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (run / "model" / name).is_file():
            shutil.copyfile(run / "model" / name, NANO / name)
    size = sum(file.stat().st_size for file in NANO.iterdir())
    if size > MOST_BYTES:
        raise SystemExit(f"nano has {size / 1e6:.1f} MB; it must stay below {MOST_BYTES / 1e6:.0f} MB.")
    print(f"{NANO}: {size / 1e6:.1f} MB")


def copy_log(run: Path) -> None:
    """Keep the recipe and the log of both stages, and draw the losses."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    encoder = run / "encoder" / "log.json"
    log = {
        "recipe": json.loads((run / "recipe.json").read_text("utf-8")),
        "encoder": json.loads(encoder.read_text("utf-8")) if encoder.is_file() else [],
        "model": json.loads((run / "log.json").read_text("utf-8")),
    }
    (RESULTS / "nano_log.json").write_text(json.dumps(log, indent=1) + "\n", "utf-8")
    draw_curve(log, RESULTS / "nano_curve.png")


def draw_curve(log: dict, path: Path) -> None:
    """Draw each part of the loss over the steps, one panel per part."""
    panels = []
    if log["encoder"]:
        panels.append(("first stage: loss", [(p["step"], p["loss"]) for p in log["encoder"] if "loss" in p]))
    for part in ("text", "bce", "dice"):
        key = f"loss_{part}"
        panels.append((f"nano: {part}", [(p["step"], p[key]) for p in log["model"] if key in p]))
    width, height, pad = 300, 190, 34
    picture = Image.new("RGB", (width * len(panels), height), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13)
    for number, (title, points) in enumerate(panels):
        left = number * width
        box = (left + pad, 30, left + width - 12, height - 26)
        top = (
            sorted(y for _, y in points)[int(0.95 * (len(points) - 1))] * 1.1
        )  # the first steps would flatten the rest
        last = max(x for x, _ in points)
        draw.text((box[0], 8), title, fill="black", font=font)
        draw.rectangle(box, outline="#bbbbbb")
        draw.text((left + 4, box[1] - 4), f"{top:.1f}", fill="#555555", font=font)
        draw.text((left + 18, box[3] - 12), "0", fill="#555555", font=font)
        draw.text((box[2] - 58, box[3] + 4), f"{last} steps", fill="#555555", font=font)
        line = [
            (box[0] + (box[2] - box[0]) * x / last, box[3] - (box[3] - box[1]) * min(y, top) / top) for x, y in points
        ]
        draw.line(line, fill="#0a5fd0", width=2)
    picture.save(path)


def write_card() -> None:
    """Write the model card from the measured figures."""
    found = json.loads((RESULTS / "nano.json").read_text("utf-8"))
    recipe = json.loads((RESULTS / "nano_log.json").read_text("utf-8"))["recipe"]
    scenes, photographs = found["scenes"], found["photographs"]
    rows = [
        ("drawn scenes, single target", scenes["single target"]),
        ("drawn scenes, all expressions", scenes["all"]),
        ("drawn scenes, held-out compositions, single target", found["scenes_held_out"]["single target"]),
        ("photographs, the person", photographs["the person"]),
        ("photographs, the clothes", photographs["the clothes"]),
        ("photographs, named parts (20 or more in training)", photographs["named parts, 20 or more in training"]),
    ]
    table = "\n".join(
        f"| {title} | {row['ciou']:.3f} | {row['giou']:.3f} | {row['ceiling_ciou']:.3f} | {row['queries']} |"
        for title, row in rows
    )
    absent, questions = scenes["absent"]["empty_when_absent"], found["questions"]["all"]["right"]
    card = f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-segmentation
---

# nano

The small model inside [self1e](../../../../README.md): the classes of SELF1E at {found["parameters"] / 1e6:.1f} M
parameters, trained from scratch. It is there so that everything works at once, offline, on a CPU. It is a first
version: expect mistakes, above all with relations, ordinals, and things that are not there.

**Knows:** drawn shapes (`self1e.data.scenes`: 14 kinds, 10 colours); people, clothing and hair in photographs.
**Does not know:** anything else. One tile of 160 x 160 pixels, masks of {found["grid"]} x {found["grid"]}.

| validation data | cIoU | gIoU | ceiling of the grid, cIoU | queries |
|---|---|---|---|---|
{table}

Absent targets answered with an empty mask: {absent:.3f}. Questions about drawn scenes answered right: {questions:.3f}.
One query on one core, encoding included: {found["query_seconds"]:.3f} s. All tables, the command and the machine:
[docs/results/nano.md](../../../../docs/results/nano.md).

## Training

    torchrun --nproc-per-node 2 -m self1e train nano --data DATA --out runs/nano
    python scripts/package_nano.py runs/nano

{recipe["encoder_pictures"]:,} pictures for encoder, projector and word embeddings alone, then
{recipe["pictures"]:,} pictures with up to {recipe["queries"]} queries and a question each; 2 CPU cores.
Recipe: `self1e.training.recipes.nano`. Log:
[nano_log.json](../../../../docs/results/nano_log.json).

## Data

Drawn scenes, made by this package. Photographs: the 704 training pictures of Clothing Co-Parsing (Apache-2.0) with
its 58 named parts and four groups (the person, the clothes, the footwear, the headwear); and the 13 COCO pictures of
a 50-picture sample whose licence allows redistribution (ids 4, 5, 7). No photograph is part of this package but the
public-domain portrait of the demo, which it was not trained on.

Weights: Apache-2.0, like the code. The clothing photographs show mostly young women in street fashion: it will do
worse on everybody else.
"""
    (NANO / "README.md").write_text(card, "utf-8")
    print(NANO / "README.md")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--card-only", action="store_true")
    arguments = parser.parse_args()
    if not arguments.card_only:
        copy_model(arguments.run)
        copy_log(arguments.run)
    if (RESULTS / "nano.json").is_file():
        write_card()


if __name__ == "__main__":
    main()
