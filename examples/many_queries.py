"""Many queries on one picture: what does not depend on words is computed once.

python examples/many_queries.py [MODEL]
"""

import sys
import time

import self1e
from self1e.data.scenes import Scenes

model = self1e.load(sys.argv[1] if len(sys.argv) > 1 else "nano")
sample = Scenes("test", size_wh=(256, 256))[6]  # a drawn scene, with words that are true of it

encoded = model.encode(sample.image)  # vision encoder, projector, fine branch
for target in sample.targets:
    started = time.perf_counter()
    result = model.segment(encoded, target.text, kind=target.kind)
    print(f"{result}  in {time.perf_counter() - started:.2f} s")

# Better still, all in one call: queries then share batches.
together = model.segment(encoded, [target.text for target in sample.targets], kind=[t.kind for t in sample.targets])
together.overlay().save("scene.png")
