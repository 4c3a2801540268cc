"""One picture, a few words, a picture of the masks.

python examples/one_picture.py [PICTURE] [MODEL]
"""

import sys
from pathlib import Path

import self1e

ASTRONAUT = Path(self1e.__file__).parent / "assets" / "astronaut.jpg"

picture = sys.argv[1] if len(sys.argv) > 1 else ASTRONAUT
model = self1e.load(sys.argv[2] if len(sys.argv) > 2 else "nano")

result = model.segment(picture, ["the person", "the hair", "the hat"])
print(result)
for one in result:
    found = "not there" if one.is_empty[0] else f"{one.areas[0]} pixels in {one.boxes_xyxy[0].tolist()}"
    print(f"{one.queries[0]}: {found}")
result.overlay().save("overlay.png")
