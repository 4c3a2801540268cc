"""Put finished runs that made `nano`, one after another, into the package: weights, logs, learning curves, model card.

python scripts/package_nano.py runs/nano runs/nano/polish-1 ...
self1e calibrate --benchmark scenes/val --model src/self1e/assets/nano --t-acc 0.97  # fit "not there", ...
python -m self1e.evaluation.nano --data DATA  # ... measure it, ...
python scripts/package_nano.py --card-only    # ... and write the figures into the card
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from self1e.training.recipes import find_recipe

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


def copy_logs(runs: Sequence[Path]) -> None:
    """Keep recipe and log of every stage, and draw the losses."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    found = []
    for run in runs:
        encoder = run / "encoder" / "log.json"
        found.append(
            {
                "recipe": json.loads((run / "recipe.json").read_text("utf-8")),
                "encoder": json.loads(encoder.read_text("utf-8")) if encoder.is_file() else [],
                "model": json.loads((run / "log.json").read_text("utf-8")),
            }
        )
    # Where a model lay on the machine that trained it says nothing to others.
    for log in found[1:]:
        log["recipe"]["start"] = "the model of the run before"
    (RESULTS / "nano_log.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    draw_curves(found, RESULTS / "nano_curve.png")


def draw_curves(logs: Sequence[dict], path: Path) -> None:
    """Draw each part of the loss over the steps: one row per run, one panel per part."""
    rows = []
    for log in logs:
        name = log["recipe"]["name"]
        row = []
        if log["encoder"]:
            row.append((f"{name}, first stage: loss", [(p["step"], p["loss"]) for p in log["encoder"] if "loss" in p]))
        for part in ("text", "bce", "dice"):
            key = f"loss_{part}"
            row.append((f"{name}: {part}", [(p["step"], p[key]) for p in log["model"] if key in p]))
        rows.append(row)
    width, height = 300, 190
    picture = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)), "white")
    draw = ImageDraw.Draw(picture)
    for number, row in enumerate(rows):
        indent = max(map(len, rows)) - len(row)
        for column, (title, points) in enumerate(row, start=indent):
            _draw_panel(draw, (column * width, number * height, width, height), title, points)
    picture.save(path)


def _draw_panel(
    draw: ImageDraw.ImageDraw, area: tuple[int, int, int, int], title: str, points: Sequence[tuple[int, float]]
) -> None:
    pad, font = 34, ImageFont.load_default(13)
    left, above, width, height = area
    box = (left + pad, above + 30, left + width - 12, above + height - 26)
    # The first steps would flatten the rest.
    top = sorted(y for _, y in points)[int(0.95 * (len(points) - 1))] * 1.1
    last = max(x for x, _ in points)
    draw.text((box[0], above + 8), title, fill="black", font=font)
    draw.rectangle(box, outline="#bbbbbb")
    draw.text((left + 4, box[1] - 4), f"{top:.1f}", fill="#555555", font=font)
    draw.text((left + 18, box[3] - 12), "0", fill="#555555", font=font)
    draw.text((box[2] - 58, box[3] + 4), f"{last} steps", fill="#555555", font=font)
    line = [(box[0] + (box[2] - box[0]) * x / last, box[3] - (box[3] - box[1]) * min(y, top) / top) for x, y in points]
    draw.line(line, fill="#0a5fd0", width=2)


def _told(recipe: dict) -> str:
    """Say what a run saw."""
    first = (
        f"{recipe['encoder_pictures']:,} pictures for encoder, projector and word embeddings alone, then "
        if recipe["encoder_pictures"]
        else ""
    )
    questions = "a question" if recipe.get("questions", 1) == 1 else f"{recipe['questions']} questions"
    return (
        f"`{recipe['name']}`: {first}{recipe['pictures']:,} pictures with up to {recipe['queries']} queries and "
        f"{questions} each, {recipe['photographs']:.0%} of them photographs."
    )


def check_recipe(recipes: Sequence[dict]) -> None:
    """Refuse runs that `self1e train nano` would not repeat. What older runs do not name had its default."""
    made = [asdict(part) for part in find_recipe("nano").parts()]
    apart = [
        f"run {number}: {name}={value!r}"
        for number, (recipe, part) in enumerate(zip(recipes, made, strict=False))
        for name, value in recipe.items()
        if name not in ("start", "polish") and value != part[name]
    ]
    if apart or len(recipes) != len(made):
        raise SystemExit(
            f"{len(recipes)} runs, where the recipe nano has {len(made)}; apart: {', '.join(apart) or 'nothing'}. "
            "Bring `nano()` in self1e.training.recipes up to date: it must be what made the weights."
        )


def write_card() -> None:
    """Write the model card from the measured figures."""
    found = json.loads((RESULTS / "nano.json").read_text("utf-8"))
    recipes = [log["recipe"] for log in json.loads((RESULTS / "nano_log.json").read_text("utf-8"))]
    check_recipe(recipes)
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
    least = found["no_target_threshold"]
    card = f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-segmentation
---

# nano

The small model inside [self1e](../../../../README.md): the classes of SELF1E at {found["parameters"] / 1e6:.1f} M
parameters, trained from scratch. It is there so that everything works at once, offline, on a CPU. It is a first
version: expect mistakes, above all with ordinals, comparisons and relations.

**Knows:** drawn shapes (`self1e.data.scenes`: 14 kinds, 10 colours); people, clothing and hair in photographs.
**Does not know:** anything else. One tile of 160 x 160 pixels, masks of {found["grid"]} x {found["grid"]}.

| validation data | cIoU | gIoU | ceiling of the grid, cIoU | queries |
|---|---|---|---|---|
{table}

Absent targets answered with an empty mask: {absent:.3f}; a mask that scores less than {least:.3f} is one, fitted on
validation scenes (`no_target_threshold`). Questions about drawn scenes answered right: {questions:.3f}.
One query on one core, encoding included: {found["query_seconds"]:.3f} s. All tables, the command and the machine:
[docs/results/nano.md](../../../../docs/results/nano.md).

## Training

    torchrun --nproc-per-node 2 -m self1e train nano --data DATA --out runs/nano
    python scripts/package_nano.py {" ".join(["runs/nano", *(f"runs/nano/polish-{n}" for n in range(1, len(recipes)))])}
    self1e calibrate --benchmark scenes/val --model src/self1e/assets/nano --t-acc 0.97
    python -m self1e.evaluation.nano --data DATA
    python scripts/package_nano.py --card-only

{" ".join(_told(recipe) for recipe in recipes)} On 2 CPU cores all of it takes
about ten hours; `--set polish=none` ends after the first run, two hours. Recipes: `self1e.training.recipes`. Logs:
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
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--card-only", action="store_true")
    arguments = parser.parse_args()
    if arguments.card_only:
        write_card()
        return
    if not arguments.runs:
        parser.error("name the folders of the runs, in order")
    copy_model(arguments.runs[-1])
    copy_logs(arguments.runs)


if __name__ == "__main__":
    main()
