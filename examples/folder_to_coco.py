"""A folder of pictures to one COCO file: a category per query, an annotation per mask.

python examples/folder_to_coco.py [FOLDER] [MODEL]
"""

import json
import sys
from pathlib import Path

import self1e
from self1e.processing.pictures import list_pictures

QUERIES = ["the person", "the clothes", "the hair"]

folder = sys.argv[1] if len(sys.argv) > 1 else str(Path(self1e.__file__).parent / "assets")
model = self1e.load(sys.argv[2] if len(sys.argv) > 2 else "nano")
categories = [{"id": number, "name": query} for number, query in enumerate(QUERIES, 1)]
coco = {"images": [], "annotations": [], "categories": categories}
for number, path in enumerate(list_pictures([folder]), 1):
    result = model.segment(path, QUERIES)
    width, height = result.size_wh
    coco["images"].append({"id": number, "file_name": path.name, "width": width, "height": height})
    for category, (one, rle) in enumerate(zip(result, result.to_coco_rle(), strict=True), 1):
        if not one.is_empty[0]:
            x0, y0, x1, y1 = one.boxes_xyxy[0].tolist()
            found = {"id": len(coco["annotations"]) + 1, "image_id": number, "category_id": category}
            found |= {"segmentation": rle, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(one.areas[0])}
            coco["annotations"].append(found | {"iscrowd": 0, "score": float(one.scores[0])})
Path("coco.json").write_text(json.dumps(coco))
print(f"coco.json: {len(coco['images'])} pictures, {len(coco['annotations'])} masks")
