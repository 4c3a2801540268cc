"""One small data set, written in every format: two pictures, a red block and a blue one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_codec

SIZES_WH = ((24, 18), (20, 26))
BLOCKS = ((3, 4, 13, 12), (8, 2, 18, 20))
"""Half-open boxes: x0, y0, x1, y1."""
WORDS = ("red_block", "blue block")
QUERIES = ("the red block", "the blue block")


def picture(number: int) -> Image.Image:
    """Noise, so that no two look alike, with a block in it."""
    width, height = SIZES_WH[number]
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height))
    coarse.paste(((255, 0, 0), (0, 0, 255))[number], BLOCKS[number])
    return coarse


def truth(number: int) -> np.ndarray:
    """The block's pixels, bool ``(H, W)``."""
    width, height = SIZES_WH[number]
    x0, y0, x1, y1 = BLOCKS[number]
    mask = np.zeros((height, width), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def polygon(number: int) -> list[float]:
    """An outline that pycocotools fills to `truth`."""
    x0, y0, x1, y1 = BLOCKS[number]
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def rle(mask: np.ndarray) -> dict[str, Any]:
    code: Any = rle_codec.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def pack_brush(mask: np.ndarray) -> list[int]:
    """Pack as Label Studio does, by the description of the format: runs of one value for a mask, RGBA."""
    values = np.repeat(mask.ravel()[:, None] * 255, 4, axis=1).ravel()
    lengths = (3, 4, 8, 16)
    bits = f"{len(values):032b}" + f"{7:05b}" + "".join(f"{length - 1:04b}" for length in lengths)
    place = 0
    while place < len(values):
        run = 1
        while place + run < len(values) and values[place + run] == values[place] and run < 65536:
            run += 1
        choice = next(i for i, length in enumerate(lengths) if run <= 2**length)
        if run == 1 and place + 3 <= len(values):  # three that may differ, to write the other kind of block too
            bits += f"0{0:02b}{2:03b}" + "".join(f"{value:08b}" for value in values[place : place + 3])
            place += 3
            continue
        bits += f"1{choice:02b}{run - 1:0{lengths[choice]}b}{values[place]:08b}"
        place += run
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def save_pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in (0, 1):
        picture(number).save(folder / f"{number}.png")


def save_mask(path: Path, mask: np.ndarray, value: int = 255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * np.uint8(value)).save(path)


def write_json_lines(root: Path) -> Path:
    save_pictures(root / "images")
    save_mask(root / "masks" / "0.png", truth(0))
    lines = [
        {
            "image": "images/0.png",
            "queries": [
                {"query": QUERIES[0], "mask": "masks/0.png", "tag": "colour"},
                {"query": "What is red?", "mask": [polygon(0)]},
                {"query": "the dog", "mask": None},
            ],
        },
        {"image": "images/1.png", "query": QUERIES[1], "mask": rle(truth(1))},
    ]
    (root / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def coco_content() -> dict[str, Any]:
    return {
        "images": [
            {"id": 10 + n, "file_name": f"{n}.png", "width": SIZES_WH[n][0], "height": SIZES_WH[n][1]} for n in (0, 1)
        ],
        "categories": [{"id": 5 + n, "name": WORDS[n]} for n in (0, 1)],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 5, "iscrowd": 0, "segmentation": [polygon(0)]},
            {"id": 2, "image_id": 11, "category_id": 6, "iscrowd": 1, "segmentation": rle(truth(1))},
        ],
    }


def write_coco(root: Path) -> Path:
    save_pictures(root / "train")
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train.json").write_text(json.dumps(coco_content()))
    return root


def write_panoptic(root: Path) -> Path:
    save_pictures(root / "train")
    folder = root / "annotations" / "panoptic_train"
    folder.mkdir(parents=True)
    numbers = (70_000, 300)  # larger than one byte, and than two
    for n in (0, 1):
        ids = truth(n) * numbers[n]
        colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
        Image.fromarray(colours).save(folder / f"{n}.png")
    content = coco_content()
    content["annotations"] = [
        {
            "image_id": 10 + n,
            "file_name": f"{n}.png",
            "segments_info": [{"id": numbers[n], "category_id": 5 + n}],
        }
        for n in (0, 1)
    ]
    (root / "annotations" / "panoptic_train.json").write_text(json.dumps(content))
    return root


def write_indexed(root: Path) -> Path:
    save_pictures(root / "images" / "train")
    for n in (0, 1):
        save_mask(root / "masks" / "train" / f"{n}.png", truth(n), n + 1)
    (root / "classes.txt").write_text(f"0 background\n1 {WORDS[0]}\n2 {WORDS[1]}\n")
    return root


def label_studio_content() -> list[dict[str, Any]]:
    def region(n: int, kind: str, value: dict[str, Any]) -> dict[str, Any]:
        width, height = SIZES_WH[n]
        return {
            "id": f"r{n}",
            "type": kind,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": value,
        }

    corners = np.array(polygon(0)).reshape(-1, 2) / SIZES_WH[0] * 100
    results = (
        [region(0, "polygonlabels", {"points": corners.tolist(), "polygonlabels": [WORDS[0]]})],
        [region(1, "brushlabels", {"format": "rle", "rle": pack_brush(truth(1)), "brushlabels": [WORDS[1]]})],
    )
    return [
        {
            "id": 100 + n,
            "data": {"image": f"/data/upload/1/0123abcd-{n}.png"},
            "annotations": [{"was_cancelled": True, "result": []}, {"was_cancelled": False, "result": results[n]}],
        }
        for n in (0, 1)
    ]


def write_label_studio(root: Path) -> Path:
    save_pictures(root / "images")
    (root / "train.json").write_text(json.dumps(label_studio_content()))
    return root


WRITERS: dict[str, Callable[[Path], Path]] = {
    "json-lines": write_json_lines,
    "coco": write_coco,
    "coco-panoptic": write_panoptic,
    "indexed": write_indexed,
    "label-studio": write_label_studio,
}


@pytest.fixture
def made() -> SimpleNamespace:
    """What the data sets are made of."""
    return SimpleNamespace(picture=picture, truth=truth, queries=QUERIES, save_mask=save_mask, sizes_wh=SIZES_WH)


@pytest.fixture
def writers() -> dict[str, Callable[[Path], Path]]:
    return WRITERS


@pytest.fixture(params=list(WRITERS))
def every_format(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """Each format in turn: its name and a folder that holds it."""
    return request.param, WRITERS[request.param](tmp_path)
