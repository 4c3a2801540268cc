"""Everybody side by side: ours, the published way taken literally, and the rivals, in seconds, bytes and operations.

    python benchmarks/speed.py                           # --suite cpu: nano and 1B; docs/results/speed.{json,md}
    python benchmarks/speed.py --suite gpu               # the full table, unattended; docs/results/speed-gpu.{json,md}
    python benchmarks/speed.py --models nano --queries 1,10 --out /tmp/speed
    python benchmarks/speed.py --figure                  # draw docs/assets/speed.png from the JSON again

What is timed is what a user waits for: JPEG bytes in, masks of the picture's size on the host out. Contenders take
turns within a run, so that a busy machine slows all of them; figures are medians over the rounds, and a ratio is the
median of the rounds' own ratios. Beside wall-clock seconds stand processor seconds, which count what this process
computed and not how long it waited for its turn. Weights are random (nano has its own): time does not depend on values.

Whatever costs the same per query (literal, rivals as published) is measured with at most five queries where one takes
long, and extrapolated; the table marks it with *. The floor is that of `roofline.py`, at the matrix-product and copy
rates measured in the same run. After each row everything is saved; a contender that runs out of memory leaves a row
that says so; ``--resume`` keeps the rows of an interrupted run on the same hardware and names both runs.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rivals
import roofline
import torch
from common import NANO, ROOT, SIZES, Peak, facts, published_config, random_model, timed
from contenders import Contender, Literal, Ours, free
from PIL import Image

import self1e
from self1e.files import atomic_write
from self1e.inference.segmenter import Self1E
from self1e.processing.image import Self1EImageProcessor
from self1e.processing.processor import Self1EProcessor

AT_MOST = 5
"""Queries of a contender whose cost is linear in them; more are extrapolated."""
SIZES_WH = {1: (640, 480), 6: (720, 480), 12: (640, 480)}
"""Pictures that are cut into so many tiles."""
SHARED, BESIDE = "attention=image", "ours beside rivals"
COLOURS = ("red", "green", "blue", "large", "small")

SUITES: dict[str, dict[str, Any]] = {
    "cpu": {
        "models": "nano,InternVL3-1B",
        "rivals": "",
        "tiles": "1",
        "queries": "1,10,150",
        "pictures": "1",
        "forms": "literal,ours,shared",
        "repeats": 5,
        "budget": 120.0,
        "once": 60.0,
        "limit": 900.0,
        "out": ROOT / "docs/results/speed",
    },
    "gpu": {
        "models": "nano,InternVL3-1B,InternVL3-2B,InternVL3-8B",
        "rivals": ",".join(rivals.RIVALS),
        "tiles": "1,6,12",
        "queries": "1,10,150",
        "pictures": "1,8,32",
        "forms": "literal,plain,ours,compiled,shared",
        "repeats": 200,
        "budget": 30.0,
        "once": 60.0,
        "limit": 300.0,
        "out": ROOT / "docs/results/speed-gpu",
    },
}

# --------------------------------------------------------------------------- what is measured


def picture_bytes(tiles: int, seed: int = 0) -> bytes:
    """A JPEG of coarse noise that is cut into so many tiles."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(SIZES_WH[tiles], Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def asked(count: int) -> list[str]:
    """Questions of usual length."""
    return [f"the {COLOURS[index % len(COLOURS)]} thing" for index in range(count)]


def load(name: str, device: torch.device, dtype: torch.dtype) -> Self1E:
    """Load nano or a folder, or make a model of published sizes with random weights."""
    if name.partition("@")[0] not in SIZES:
        return self1e.load(name, device=device, dtype=dtype)
    model = random_model(roofline.config_of(name), str(device), dtype)
    processor = Self1EProcessor(Self1EImageProcessor(), Self1EProcessor.from_pretrained(NANO).tokenizer)
    return Self1E(model, processor, name=name)


def with_shared_picture(segmenter: Self1E) -> Self1E:
    """The same modules with ``attention="image"``: image tokens see no word, and are read once per picture."""
    model = copy.copy(segmenter.model)
    model.config = copy.deepcopy(segmenter.model.config)
    model.config.attention = "image"
    return Self1E(model, segmenter.processor, name=segmenter.name)


def ways(segmenter: Self1E, tiles: int) -> list[Contender]:
    """The ways to run one of our models."""
    name = segmenter.name
    found: list[Contender] = [
        Literal(segmenter, name, tiles, is_linear=name.partition("@")[0] in SIZES),
        Ours(segmenter, name, "plain", tiles, exact="plain"),
        Ours(segmenter, name, "ours", tiles),
        Ours(with_shared_picture(segmenter), name, SHARED, tiles, owner=segmenter),
    ]
    if segmenter.device.type == "cuda":
        compiled = Self1E(segmenter.model, segmenter.processor, name=name).compile()
        found.append(Ours(compiled, name, "compiled", tiles, owner=segmenter))
    return found


def answer(contender: Contender, pictures: Sequence[bytes], count: int, device: torch.device) -> tuple[float, float]:
    """Let it answer: wall-clock seconds, and those that this process computed, over all threads."""
    questions = asked(count)
    contender.prepare()
    start = time.process_time()
    found, wall = timed(lambda: contender.run(pictures, questions), device)
    processor = time.process_time() - start
    assert [len(masks) for masks in found] == [count] * len(pictures)
    return wall, processor


@contextmanager
def noting_shortage(row: dict[str, Any]):
    """Whoever runs out of memory leaves the run, with a word in its row."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        row["error"] = f"out of memory: {str(error).splitlines()[0]:.160}"


def measure(
    contenders: Sequence[Contender],
    scenario: dict[str, int],
    device: torch.device,
    *,
    repeats: int,
    budget: float,
    once: float,
) -> list[dict[str, Any]]:
    """Let everybody answer in turns.

    Args:
        contenders: Who takes part.
        scenario: ``tiles``, ``queries`` and ``pictures``.
        device: Where they are.
        repeats: Most rounds, after one that wakes everything.
        budget: Seconds after which no further round begins.
        once: Whoever needs more seconds for one answer takes part in the first round only.
    """
    pictures = [picture_bytes(scenario["tiles"], seed) for seed in range(scenario["pictures"])]
    rows: list[dict[str, Any]] = []
    for contender in contenders:
        count = min(scenario["queries"], AT_MOST) if contender.is_linear else scenario["queries"]
        rows.append(scenario | {"model": contender.name, "form": contender.form, "measured_queries": count})
    times = [scenario["queries"] / row["measured_queries"] for row in rows]
    for contender, row, factor in zip(contenders, rows, times, strict=True):
        free(device)
        with noting_shortage(row), Peak(device) as peak:
            wall, processor = answer(contender, pictures, row["measured_queries"], device)
            row |= {"first": [wall * factor, processor * factor], "rounds": [], "is_slow": wall > once}
        row["peak_bytes"] = peak.bytes
    start = time.perf_counter()
    for _ in range(repeats):
        for contender, row, factor in zip(contenders, rows, times, strict=True):
            if "error" in row or row["is_slow"]:
                continue
            with noting_shortage(row):
                wall, processor = answer(contender, pictures, row["measured_queries"], device)
                row["rounds"].append([wall * factor, processor * factor])
        if time.perf_counter() - start > budget:
            break
    for contender, row in zip(contenders, rows, strict=True):
        row["note"] = contender.note()
        if "error" in row or row["is_slow"]:
            continue
        with noting_shortage(row), Peak(device) as peak:  # again: the first may have folded weights
            answer(contender, pictures, row["measured_queries"], device)
        row["peak_bytes"] = peak.bytes
    return [summarise(row) for row in rows]


def first_query(contender: Contender, tiles: int, device: torch.device) -> dict[str, Any]:
    """The first answer after loading: it folds weights, reads the prefix and wakes everything."""
    row: dict[str, Any] = {"model": contender.name, "form": contender.form, "tiles": tiles}
    with noting_shortage(row):
        row["seconds"], row["processor_seconds"] = answer(contender, [picture_bytes(tiles)], 1, device)
    return row


def summarise(row: dict[str, Any]) -> dict[str, Any]:
    """Median, 95th percentile and throughput of a row's rounds."""
    if "error" in row:
        return row
    rounds = row["rounds"] or [row["first"]]
    walls = [wall for wall, _ in rounds]
    seconds = statistics.median(walls)
    return row | {
        "seconds": seconds,
        "p95": float(np.percentile(walls, 95)),
        "processor_seconds": statistics.median(processor for _, processor in rounds),
        "masks_per_second": row["queries"] * row["pictures"] / seconds,
    }


def add_counts(
    rows: list[dict[str, Any]], config: Any, itemsize: int, peak: tuple[float, float], clock: str = "seconds"
) -> None:
    """Put counted operations and the floor beside our own rows; ``clock``: the seconds that ``peak`` is of."""
    ways = {"literal": roofline.LITERAL, "ours": roofline.EXACT, "compiled": roofline.EXACT, SHARED: roofline.IMAGE}
    for row in rows:
        if row["form"] not in ways or "error" in row:
            continue
        size = SIZES_WH[row["tiles"]]
        costs = roofline.count(
            config, row["tiles"], row["queries"], ways[row["form"]], itemsize=itemsize, picture_wh=size
        )
        row["flop"] = row["pictures"] * sum(cost.flop for cost in costs.values())
        row["floor"] = row["pictures"] * roofline.floor(costs, peak)
        row["above_floor"] = row[clock] / row["floor"]
    literal = next((row for row in rows if row["form"] == "literal" and "error" not in row), None)
    for row in rows:
        if literal is None or row is literal or "error" in row:
            continue
        pairs = list(zip(literal["rounds"], row["rounds"], strict=False)) or [(literal["first"], row["first"])]
        row["faster"] = statistics.median(a[0] / b[0] for a, b in pairs)
        row["faster_processor"] = statistics.median(a[1] / b[1] for a, b in pairs)
        if "flop" in row:
            row["fewer_operations"] = literal["flop"] / row["flop"]


# --------------------------------------------------------------------------- stages


class StageClock:
    """Seconds per stage of our path, by wrapping what the segmenter calls; what a stage calls itself is not in it."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._inside: list[float] = []

    def _wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed_function(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            found, seconds = timed(lambda: function(*args, **kwargs), self._device)
            within = self._inside.pop()
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds - within
            if self._inside:
                self._inside[-1] += seconds
            return found

        return timed_function

    @contextmanager
    def running(self, segmenter: Self1E):
        """Wrap, and unwrap at the end."""
        from self1e.inference import folded, reader
        from self1e.inference import segmenter as calls

        places: list[tuple[Any, str, str]] = [
            (calls, "open_picture", "decode"),
            (Self1EImageProcessor, "cut", "preprocess"),
            (folded.FoldedModel, "encode", "vision"),
            (folded.FoldedModel, "fold_pictures", "head"),
            (folded.FoldedModel, "mask_logits", "head"),
            (reader.Reader, "read_rows", "prefill"),
            (reader.Reader, "read_picture", "prefill"),
            (reader.Reader, "read_words", "prefill"),
            (calls, "finish", "post"),
        ]
        engine = segmenter._engine("auto")
        held = getattr(engine, "_stages", {})  # by name, so that they can be compiled
        first = held.get("first")
        kept = [(place, name, getattr(place, name)) for place, name, _ in places]
        for place, name, stage in places:
            setattr(place, name, self._wrap(stage, getattr(place, name)))
        if first is not None:
            held["first"] = self._wrap("prefill", first)
        try:
            yield self
        finally:
            for place, name, function in kept:
                setattr(place, name, function)
            if first is not None:
                held["first"] = first


def split_stages(segmenter: Self1E, tiles: int, queries: int, repeats: int) -> dict[str, Any]:
    """Median seconds per stage of ``segment`` from JPEG bytes; the rest is words and bookkeeping."""
    found: list[dict[str, float]] = []
    data, questions = picture_bytes(tiles), asked(queries)
    for _ in range(repeats + 1):
        clock = StageClock(segmenter.device)
        with clock.running(segmenter):
            _, total = timed(lambda: segmenter.segment(data, questions, max_tiles=tiles), segmenter.device)
        found.append(clock.seconds | {"rest": total - sum(clock.seconds.values()), "total": total})
    kept = found[1:] or found
    medians = {stage: statistics.median(one[stage] for one in kept) for stage in kept[0]}
    return {"model": segmenter.name, "tiles": tiles, "queries": queries, "seconds": medians}


# --------------------------------------------------------------------------- cold start


_CHILD = """
import json, sys, time
start, picture, device, dtype = float(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
import self1e
imported = time.time() - start
model = self1e.load("nano", device=device, dtype=dtype)
loaded = time.time() - start
model.segment(picture, "the red thing")
first = time.time() - start
encoded = model.encode(picture)
model.segment(encoded, "the green thing")
times = []
for _ in range(5):
    began = time.perf_counter()
    model.segment(encoded, "the blue thing")
    times.append(time.perf_counter() - began)
whole = []
for _ in range(5):
    began = time.perf_counter()
    model.segment(picture, "the blue thing")
    whole.append(time.perf_counter() - began)
print(json.dumps(dict(imported=imported, loaded=loaded, first_mask=first, next_query=sorted(times)[2],
                      next_picture=sorted(whole)[2], processor=time.process_time())))
"""


def cold_start(device: torch.device, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """A new process: seconds from its start to nano's first mask; then of a next query and a next picture."""
    runs = []
    for _ in range(repeats):
        picture = str(ROOT / "src/self1e/assets/astronaut.jpg")
        arguments = [str(time.time()), picture, str(device), str(dtype).removeprefix("torch.")]
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, *arguments], capture_output=True, text=True, timeout=900, check=False
        )
        if done.returncode:
            return {"error": done.stderr.strip().splitlines()[-1]}
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]} | {"runs": len(runs)}


# --------------------------------------------------------------------------- the machine


def machine_peak(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> tuple[float, float]:
    """Operations per second of a large matrix product, bytes per second of a copy: the best of many tries.

    On a CPU per processor second, over all threads: others who use the machine do not change that.
    """
    side, numbers = (8192, 2**28) if device.type == "cuda" else (1024, 2**24)
    left = torch.randn(side, side, device=device, dtype=dtype)
    right, out = torch.randn_like(left), torch.empty_like(left)
    source = torch.zeros(numbers, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)

    def best(work: Callable[[], Any]) -> float:
        work()
        least, end = float("inf"), time.perf_counter() + seconds
        tries = 0
        while time.perf_counter() < end or tries < 5:
            start = time.process_time()
            _, wall = timed(work, device)
            least = min(least, wall if device.type == "cuda" else time.process_time() - start)
            tries += 1
        return least

    flop = 2 * side**3 / best(lambda: torch.matmul(left, right, out=out))
    return flop, 2 * numbers / best(lambda: target.copy_(source))


# --------------------------------------------------------------------------- the whole run


class Report:
    """The rows so far; saved after each."""

    def __init__(self, path: Path, given: dict[str, Any], *, resume: bool) -> None:
        self.path = path
        self.found: dict[str, Any] = given | {
            "runs": [],
            "first_queries": [],
            "measured": [],
            "stages": [],
            "counted_rivals": [],
            "waterfall": [],
            "cold_start": {},
        }
        if resume and path.with_suffix(".json").exists():
            old = json.loads(path.with_suffix(".json").read_text())
            if all(old[key] == given[key] for key in ("hardware", "dtype", "threads")):
                self.found = old
        self.found["runs"].append({key: given[key] for key in ("command", "commit", "date")})

    def has(self, scenario: dict[str, Any]) -> bool:
        """Whether a resumed run has measured this; ours beside rivals is no measurement of ours against literal."""
        rows = [row for row in self.found["measured"] if row.get("form") != BESIDE]
        return any(all(row.get(key) == value for key, value in scenario.items()) for row in rows)

    def add(self, section: str, *rows: dict[str, Any]) -> None:
        """Keep rows."""
        self.found[section] += rows
        self.save()

    def save(self) -> None:
        """Write JSON and markdown."""
        atomic_write(self.path.with_suffix(".json"), (json.dumps(self.found, indent=1) + "\n").encode())
        atomic_write(self.path.with_suffix(".md"), as_markdown(self.found).encode())


def run_ours(report: Report, name: str, chosen: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> None:
    """All scenarios of one of our models; none if it does not fit."""
    wanted = {
        tiles: [
            scenario
            for pictures in chosen.pictures
            for queries in chosen.queries
            if not report.has(
                (scenario := {"tiles": tiles, "queries": queries, "pictures": pictures}) | {"model": name}
            )
        ]
        for tiles in chosen.tiles
    }
    if not any(wanted.values()):
        return
    config, peak = roofline.config_of(name), (report.found["peak_flops"], report.found["peak_bytes"])
    try:
        segmenter = load(name, device, dtype)
    except (torch.OutOfMemoryError, MemoryError) as error:
        report.add("measured", {"model": name, "form": "ours", "error": f"out of memory: {error!s:.160}"})
        return
    for tiles, scenarios in wanted.items():
        entries = [entry for entry in ways(segmenter, tiles) if entry.form in chosen.forms]
        for entry in entries:
            report.add("first_queries", first_query(entry, tiles, device))
        for scenario in scenarios:
            counted = roofline.count(config, tiles, scenario["queries"], itemsize=dtype.itemsize)
            least = scenario["pictures"] * roofline.floor(counted, peak)
            if least > chosen.limit:
                reason = f"left out: its floor alone is {least:.0f} s"
                report.add("measured", *(scenario | {"model": name, "form": e.form, "error": reason} for e in entries))
                continue
            rows = measure(entries, scenario, device, repeats=chosen.repeats, budget=chosen.budget, once=chosen.once)
            add_counts(rows, config, dtype.itemsize, peak, report.found["clock"])
            report.add("measured", *rows)
            print(*(line(row) for row in rows), sep="\n", flush=True)
        if chosen.stages:
            report.add(
                "stages",
                *(
                    split_stages(segmenter, tiles, queries, chosen.repeats if queries < 20 else 1)
                    for queries in chosen.queries[:2]
                ),
            )
    del segmenter, entries
    free(device)


def run_rivals(report: Report, chosen: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> None:
    """The rivals and our models with one tile, in turns: all that fit together."""
    entries: list[Contender] = []
    vlm: Any = None
    for name in chosen.rivals:
        try:
            rival = rivals.make(name, device, dtype, tiny=chosen.tiny, vlm=vlm)
        except (torch.OutOfMemoryError, MemoryError) as error:
            report.add("measured", {"model": name, "form": "published", "error": f"out of memory: {error!s:.160}"})
            free(device)
            continue
        vlm = vlm if vlm is not None else getattr(rival, "vlm", None) if isinstance(rival, rivals._InternVL) else None
        entries += [rivals.Entry(rival, form) for form in rivals.FORMS]
    for name in chosen.models:
        try:
            segmenter = load(name, device, dtype)
            entries.append(Ours(segmenter.compile() if device.type == "cuda" else segmenter, name, BESIDE, 1))
        except (torch.OutOfMemoryError, MemoryError):
            free(device)  # it has its rows alone
    for entry in entries:
        report.add("first_queries", first_query(entry, 1, device))
    for queries in chosen.queries:
        if all(report.has({"model": name, "form": rivals.FORMS[0], "queries": queries}) for name in chosen.rivals):
            continue
        rows = measure(
            entries,
            {"tiles": 1, "queries": queries, "pictures": 1},
            device,
            repeats=chosen.repeats,
            budget=chosen.budget * len(chosen.rivals),
            once=chosen.once,
        )
        # Rivals that do not fit into memory together take several runs: each is compared with ours of its own.
        run = len(report.found["runs"])
        report.add("measured", *(row | {"run": run} for row in rows))
        print(*(line(row) for row in rows), sep="\n", flush=True)


def count_rivals(report: Report, names: Sequence[str], queries: Sequence[int], *, tiny: bool) -> None:
    """Count what the rivals compute, on the meta device: also where nothing of them fits."""
    for name in names:
        rival = rivals.make(name, "meta", torch.float32, tiny=tiny)
        for form in rivals.FORMS:
            rival.attend("eager" if form == "published" else "sdpa")
            try:
                first, further = rivals.count(rival, form)
            except RuntimeError as error:  # a release of transformers that reads numbers on the way
                print(f"{name}, {form}: cannot be counted on the meta device: {error}", file=sys.stderr)
                continue
            report.add(
                "counted_rivals",
                *(
                    {"model": name, "form": form, "queries": number, "flop": first + (number - 1) * further}
                    for number in queries
                ),
            )


# --------------------------------------------------------------------------- the tables


def line(row: dict[str, Any]) -> str:
    """One row of the table of times."""
    place = f"| {row['model']} | {row.get('tiles', '')} | {row.get('pictures', '')} | {row.get('queries', '')} "
    if "error" in row:
        return f"{place}| {row['form']} | {row['error']} | | | | | | |"
    star = "*" if row["measured_queries"] < row["queries"] else ""

    def ratio(name: str) -> str:
        return f"{row[name]:.2f} x" if name in row else ""

    floor = f"{duration(row['floor'])} ({row['above_floor']:.1f} x)" if "floor" in row else ""
    return (
        f"{place}| {row['form']} | {duration(row['seconds'])}{star} | {duration(row['p95'])}{star} "
        f"| {duration(row['processor_seconds'])} | {floor} | {ratio('faster')} | {ratio('faster_processor')} "
        f"| {ratio('fewer_operations')} | {row['peak_bytes'] / 1e6:.0f} MB |"
    )


def duration(seconds: float) -> str:
    """Write seconds so that three digits show."""
    if seconds != seconds:
        return ""
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def as_markdown(report: dict[str, Any]) -> str:
    """Write all tables."""
    lines = [
        "# Speed: ours, the published way, and the rivals",
        "",
        f"{report['hardware']}, {report['threads']} thread(s), {report['dtype']}, torch {report['torch']}, "
        f"transformers {report['transformers']}. Measured in the same run: "
        f"{report['peak_flops'] / 1e12:.3g} TFLOP/s in a matrix product, "
        f"{report['peak_bytes'] / 1e9:.3g} GB/s in a copy, per "
        f"{report['clock'][:-1].replace('_', ' ')}. Random weights, but for nano. Command and commit:",
        "",
        *(f"* `{run['command']}`, {run['commit']}, {run['date']}" for run in report["runs"]),
    ]
    if report.get("remark"):
        lines += ["", report["remark"]]
    lines += [
        "",
        "## From JPEG to masks",
        "",
        "Medians of interleaved rounds. *Processor* is the time this process computed, over all threads: it shows less "
        "of what else ran on the machine. *Floor* is the least this machine needs (on a CPU in processor seconds), in "
        "brackets how far we are from it. "
        "*Faster* is against literal, round by round, in wall-clock and in processor seconds; *fewer operations* is "
        f"what counting promises. * extrapolated from {AT_MOST} queries. Memory: the peak above the loaded model.",
        "",
        "| model | tiles | pictures | queries | form | seconds | p95 | processor | floor | faster | (processor) "
        "| fewer operations | memory |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(line(row) for row in report["measured"]),
    ]
    firsts = [row for row in report["first_queries"] if "error" not in row]
    if firsts:
        lines += ["", "## The first query after loading", "", "| model | tiles | form | seconds | processor |"]
        lines += ["|---|---|---|---|---|"]
        lines += [
            f"| {row['model']} | {row['tiles']} | {row['form']} | {duration(row['seconds'])} "
            f"| {duration(row['processor_seconds'])} |"
            for row in firsts
        ]
    lines += against_rivals(report["measured"])
    if report["stages"]:
        names = ("decode", "preprocess", "vision", "prefill", "head", "post", "rest")
        lines += ["", "## Where the time goes", "", f"| model | tiles | queries | {' | '.join(names)} | total |"]
        lines += ["|---|---|---|" + "---|" * (len(names) + 1)]
        for row in report["stages"]:
            parts = " | ".join(duration(row["seconds"].get(name, 0.0)) for name in (*names, "total"))
            lines.append(f"| {row['model']} | {row['tiles']} | {row['queries']} | {parts} |")
        lines += ["", "Vision includes the projector; head includes what is kept of the picture (K)."]
    cold = report["cold_start"]
    if cold:
        lines += ["", "## Cold start of nano", ""]
        lines.append(
            f"Failed: {cold['error']}"
            if "error" in cold
            else f"A new process, median of {cold['runs']}: imported after {cold['imported']:.2f} s, loaded after "
            f"{cold['loaded']:.2f} s, first mask after {cold['first_mask']:.2f} s. Next query about an encoded picture "
            f"{duration(cold['next_query'])}, next picture {duration(cold['next_picture'])}; all of it took "
            f"{cold['processor']:.2f} processor seconds."
        )
    if report["counted_rivals"]:
        lines += ["", "## What the rivals compute", "", "TFLOP of one picture, counted on the meta device.", ""]
        lines += ["| model | form | queries | TFLOP | ours at 2B | ours at 8B |", "|---|---|---|---|---|---|"]
        for row in report["counted_rivals"]:
            own = (
                row["flop"] / roofline.operations(published_config(name), 1, row["queries"])
                for name in ("InternVL3-2B", "InternVL3-8B")
            )
            ratios = " | ".join(f"{ratio:.2f} x" for ratio in own)
            lines.append(f"| {row['model']} | {row['form']} | {row['queries']} | {row['flop'] / 1e12:.4g} | {ratios} |")
        lines += [
            "",
            "The last columns: how many times our operations with one tile. Operations are not time: writing a token "
            "reads all weights for a few operations, so the generating rivals are slower than these ratios say.",
        ]
    return "\n".join(lines) + "\n"


def against_rivals(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How many times longer the rivals of one run took."""
    ours = [row for row in rows if row["form"] == BESIDE and "error" not in row]
    models = list(dict.fromkeys(row["model"] for row in ours))
    if not ours:
        return []
    lines = ["", "## Against the rivals", "", "How many times as long as ours they took, in the same rounds.", ""]
    lines += [f"| rival | form | queries | {' | '.join(models)} |", "|---|---|---|" + "---|" * len(models)]
    for row in rows:
        if row["form"] not in rivals.FORMS or "error" in row:
            continue
        own = {one["model"]: one["seconds"] for one in ours if all(one[k] == row[k] for k in ("queries", "run"))}
        ratios = [f"{row['seconds'] / own[model]:.2f} x" if model in own else "" for model in models]
        lines.append(f"| {row['model']} | {row['form']} | {row['queries']} | {' | '.join(ratios)} |")
    return lines


# --------------------------------------------------------------------------- the figure


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw the waterfall of operations, and measured times beside it."""
    from self1e.figures.sheet import FAINT, INK, Sheet

    largest = max(report["waterfall"], key=lambda one: one["steps"][0][1])["model"]
    shown = [one for one in report["waterfall"] if one["model"] == largest]
    height, left, width = 21, 330, 500
    sheet = Sheet(left + width + 130, 70 + sum(height * (len(one["steps"]) + 2) + 16 for one in shown))
    y = 26.0
    sheet.text(22, y, f"What each step saves: {shown[0]['model']}, one tile, operations of one picture", 17, bold=True)
    y += 36
    for one in shown:
        whole = one["steps"][0][1]
        plural = "query" if one["queries"] == 1 else "queries"
        sheet.text(22, y, f"{one['queries']} {plural}", 14, bold=True)
        y += height
        before = whole
        for name, flop in one["steps"]:
            words = roofline.REWRITES.get(name, "literal: everything once per query")
            sheet.text(22, y, words, 10, FAINT)
            bar, saved = width * flop / whole, width * (before - flop) / whole
            sheet.box(left, y - 6, max(bar, 1), 12, (96, 110, 130))
            if saved:
                sheet.box(left + bar, y - 6, max(saved, 1), 12, (238, 120, 20))
            sheet.text(left + width + 10, y, f"{flop / 1e12:.3g} T", 11, INK)
            before, y = flop, y + height
        measured = {row["form"]: row for row in report["measured"] if _is_shown(row, one)}
        if "faster" in measured.get("ours", {}):
            ours = measured["ours"]
            words = f"counted {ours['fewer_operations']:.2f} x less, measured {ours['faster_processor']:.2f} x faster"
            sheet.text(left, y, f"{words} (processor seconds, {report['hardware']})", 10, FAINT)
        y += height + 16
    sheet.save(path)


def _is_shown(row: dict[str, Any], one: dict[str, Any]) -> bool:
    keys = {"model": one["model"], "queries": one["queries"], "tiles": 1, "pictures": 1}
    return all(row.get(key) == value for key, value in keys.items())


# --------------------------------------------------------------------------- command line


def parse() -> argparse.Namespace:
    """Read the command line; a suite fills what is left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=sorted(SUITES), default="cpu")
    parser.add_argument("--models", help=f"of ours: nano, a folder, {', '.join(SIZES)}; separated by commas")
    parser.add_argument("--rivals", help=f"to be measured: {', '.join(rivals.RIVALS)}")
    parser.add_argument("--tiles", help="per picture")
    parser.add_argument("--queries", help="per picture")
    parser.add_argument("--pictures", help="per batch")
    parser.add_argument("--forms", help="of ours: literal, plain, ours, compiled (CUDA), shared")
    parser.add_argument("--repeats", type=int, help="most rounds")
    parser.add_argument("--budget", type=float, help="seconds for the rounds of a scenario")
    parser.add_argument("--once", type=float, help="whoever needs more seconds for an answer gives only one")
    parser.add_argument("--limit", type=float, help="rows whose floor is more seconds than this are left out")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--peak-flops", type=float, help="operations per second, instead of measuring")
    parser.add_argument("--peak-bytes", type=float, help="bytes per second, instead of measuring")
    parser.add_argument("--stages", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--cold-start", type=int, default=3, help="new processes; 0 for none")
    parser.add_argument("--count-rivals", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tiny", action="store_true", help="tiny rivals: does every line of their code run?")
    parser.add_argument("--resume", action="store_true", help="keep what an interrupted run has measured")
    parser.add_argument("--remark", default="", help="what a reader must know about this run")
    parser.add_argument("--figure", action="store_true", help="only draw again")
    parser.add_argument("--out", type=Path, help="without ending")
    chosen = parser.parse_args()
    for name, value in SUITES[chosen.suite].items():
        if getattr(chosen, name) is None:
            setattr(chosen, name, value)
    for name in ("tiles", "queries", "pictures"):
        setattr(chosen, name, [int(value) for value in getattr(chosen, name).split(",")])
    for name in ("models", "rivals", "forms"):
        setattr(chosen, name, [value for value in getattr(chosen, name).split(",") if value])
    chosen.forms = [SHARED if form == "shared" else form for form in chosen.forms]
    unknown = set(chosen.tiles) - set(SIZES_WH)
    if unknown:
        parser.error(f"--tiles {sorted(unknown)}: known are {sorted(SIZES_WH)}")
    return chosen


def main() -> None:
    """Measure, count, draw."""
    chosen = parse()
    figure = ROOT / "docs/assets/speed.png"
    if chosen.figure:
        draw(json.loads(chosen.out.with_suffix(".json").read_text()), figure)
        return
    from self1e.inference.loading import choose_device, choose_dtype

    device = choose_device(chosen.device)
    dtype = choose_dtype(chosen.dtype, device)
    found = facts(device, dtype) | {"remark": chosen.remark}
    measured = (chosen.peak_flops, chosen.peak_bytes)
    flops, copied = measured if all(measured) else machine_peak(device, dtype)
    found |= {"peak_flops": flops, "peak_bytes": copied}
    found["clock"] = "seconds" if device.type == "cuda" else "processor_seconds"
    report = Report(chosen.out, found, resume=chosen.resume)
    for name in chosen.models:
        if not any(one["model"] == name for one in report.found["waterfall"]):
            report.add(
                "waterfall",
                *(
                    {"model": name, "queries": number, "steps": roofline.steps(roofline.config_of(name), 1, number)}
                    for number in chosen.queries
                ),
            )
    if chosen.count_rivals and not report.found["counted_rivals"]:
        names = list(rivals.RIVALS) if not chosen.tiny else chosen.rivals
        count_rivals(report, names, (1, 10, 150), tiny=chosen.tiny)
    if chosen.cold_start and not report.found["cold_start"]:
        report.found["cold_start"] = cold_start(device, dtype, chosen.cold_start)
        report.save()
    for name in chosen.models:
        run_ours(report, name, chosen, device, dtype)
    if chosen.rivals:
        run_rivals(report, chosen, device, dtype)
    report.save()
    if chosen.out == SUITES["cpu"]["out"]:
        draw(report.found, figure)
    print(f"\n{chosen.out.with_suffix('.md')} and .json are written.")


if __name__ == "__main__":
    main()
