"""Put the service under more load than it takes, send it what it must refuse, kill it; and compare every answer.

    python benchmarks/service.py --seconds 180 --json docs/results/service.json --markdown docs/results/service.md

A service runs as its own process over nano. Clients ask without a pause for pictures and words whose answers this
process has computed beforehand by the direct call. What is checked:

* every answer is the direct call's, pixel for pixel, scores to 1e-5;
* whoever is not answered gets 429 with a Retry-After of at least a second;
* memory of the service does not grow: the second half of the time against the first;
* a body that comes too slowly gets 408, one that is too large 413, and one that is cut harms nobody;
* told to stop (SIGTERM), it answers what it has accepted; killed and started again, it answers as before.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from self1e.client import Client, ServiceError

UPLOAD_SECONDS = 3
MAX_BODY = 2_000_000
QUERIES = ("the circle", "the red square", "a zebra", "the largest shape", "the triangle on the left")


# ---------------------------------------------------------------------- the service


class Process:
    """``self1e serve`` on a port of its own.

    Args:
        log: Where its log goes.
        settings: Of the service, as ``--set`` takes them.
    """

    def __init__(self, log: Path, **settings: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        self._settings = settings
        self.start()

    def start(self) -> None:
        """Start, and wait until it is ready."""
        command = [sys.executable, "-m", "self1e", "serve", "--device", "cpu", "--port", str(self.port)]
        for name, value in self._settings.items():
            command += ["--set", f"{name}={value}"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log, stdout=log)
        while not Client(self.url, timeout=5).ready():
            if self._process.poll() is not None:
                raise RuntimeError(f"the service has not started: {self._log.read_text('utf-8')[-2000:]}")
            time.sleep(0.1)

    def memory(self) -> int:
        """Return its resident memory, in bytes (Linux)."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text("utf-8").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and return its exit status."""
        self._process.send_signal(number)
        return self._process.wait(120)


@contextmanager
def running(log: Path, **settings: Any) -> Iterator[Process]:
    """Start a service, and end it whatever happens."""
    process = Process(log, **settings)
    try:
        yield process
    finally:
        process.end(signal.SIGKILL)


# ---------------------------------------------------------------------- load


@dataclass(frozen=True)
class Question:
    """A picture, a query, and the direct call's answer."""

    picture: Image.Image
    query: str
    mask: np.ndarray
    score: float


def make_questions(model: Any, pictures: int) -> list[Question]:
    """Draw scenes, and ask the model itself."""
    from self1e.data.scenes import Scenes

    found = []
    for scene in Scenes("test", length=pictures):
        picture = scene.image
        direct = model.segment(picture, QUERIES)
        found += [Question(picture, query, direct.mask(k), float(direct.scores[k])) for k, query in enumerate(QUERIES)]
    return found


@dataclass
class Load:
    """What clients have seen."""

    seconds: list[float] = field(default_factory=list)
    """Until each answer."""
    wrong: list[str] = field(default_factory=list)
    """Answers that were not the direct call's."""
    refused: Counter[str] = field(default_factory=Counter)
    """Refusals by status and kind."""
    without_retry: int = 0
    """429 without a time to come again."""
    memory: list[int] = field(default_factory=list)
    """Of the service, once a second."""


def ask(client: Client, question: Question, image: Any, load: Load) -> None:
    """Ask once and compare."""
    start = time.monotonic()
    try:
        result = client.segment(image or question.picture, question.query)
    except ServiceError as error:
        load.refused[f"{error.status} {error.kind}".strip()] += 1
        if error.status == 429:
            load.without_retry += error.retry_after is None or error.retry_after < 1
            time.sleep(0.2)  # not as long as it asks for: it is to be kept busy
        return
    load.seconds.append(time.monotonic() - start)
    if not np.array_equal(result.mask(), question.mask) or abs(float(result.scores[0]) - question.score) > 1e-5:
        load.wrong.append(question.query)


def press(process: Process, questions: list[Question], clients: int, seconds: float) -> Load:
    """Ask from many threads at once; two in three ask about uploaded pictures, the others send theirs along."""
    load = Load()
    first = Client(process.url, retries=20)
    images = {id(one.picture): first.upload(one.picture) for one in questions}
    end = time.monotonic() + seconds

    def one(number: int) -> None:
        with Client(process.url, retries=0) as client:
            turn = number
            while time.monotonic() < end:
                question = questions[turn % len(questions)]
                ask(client, question, images[id(question.picture)] if turn % 3 else None, load)
                turn += 7

    threads = [threading.Thread(target=one, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        load.memory.append(process.memory())
        time.sleep(1)
    for thread in threads:
        thread.join()
    return load


def summary(load: Load, seconds: float) -> dict[str, Any]:
    """Put what clients have seen into numbers."""
    half = len(load.memory) // 2
    early, late = load.memory[half // 2 : half], load.memory[half:]
    return {
        "answers": len(load.seconds),
        "answers_per_second": round(len(load.seconds) / seconds, 2),
        "wrong": len(load.wrong),
        "refused": dict(load.refused),
        "refused_without_retry_after": load.without_retry,
        "latency_seconds": {
            name: round(float(np.percentile(load.seconds, share)), 3) if load.seconds else None
            for name, share in (("median", 50), ("p95", 95), ("p99", 99), ("longest", 100))
        },
        "memory_megabytes": {
            "first_half": round(max(early, default=0) / 1e6, 1),
            "second_half": round(max(late, default=0) / 1e6, 1),
        },
    }


# ---------------------------------------------------------------------- uploads that must not be taken


def send_raw(process: Process, pieces: Iterator[bytes], length: int) -> int:
    """Send a body in pieces; return the status, or 0 if the connection was closed without one."""
    with socket.create_connection(("127.0.0.1", process.port), timeout=60) as connection:
        head = (
            f"POST /v1/images HTTP/1.1\r\nHost: 127.0.0.1:{process.port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\n\r\n"
        )
        try:
            connection.sendall(head.encode())
            for piece in pieces:
                connection.sendall(piece)
        except OSError:  # refused before its end
            pass
        try:
            line = connection.makefile("rb").readline()
        except OSError:
            return 0
    return int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else 0


def slowly(count: int) -> Iterator[bytes]:
    """Give a byte every half second."""
    for _ in range(count):
        time.sleep(0.5)
        yield b" "


def bad_uploads(process: Process, question: Question) -> dict[str, Any]:
    """Send bodies that come slowly, are too large, or are cut; then ask as usual."""
    statuses: dict[str, Any] = {
        "slow": send_raw(process, slowly(8 * UPLOAD_SECONDS), 1000),
        "oversized": send_raw(process, iter([b" " * 100_000] * 30), 3_000_000),
    }
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", process.port), timeout=60) as connection:
            connection.sendall(
                b"POST /v1/images HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100000\r\n\r\n" + b" " * 50_000
            )
    load = Load()
    ask(Client(process.url), question, None, load)
    return statuses | {"right_afterwards": len(load.seconds) - len(load.wrong)}


# ---------------------------------------------------------------------- kill and restart


def stop_under_load(process: Process, questions: list[Question]) -> dict[str, Any]:
    """Stop while requests are worked on, start again, kill, start again; compare all answers."""
    load = Load()
    threads = [
        threading.Thread(target=ask, args=(Client(process.url, retries=0), question, None, load))
        for question in questions[:8]
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    status = process.end()
    for thread in threads:
        thread.join()
    stopped = {
        "exit_status": status,
        "answers": len(load.seconds),
        "wrong": len(load.wrong),
        "refused": dict(load.refused),
    }
    after = Load()
    process.start()
    ask(Client(process.url), questions[0], None, after)
    killed = process.end(signal.SIGKILL)
    process.start()
    ask(Client(process.url), questions[1], None, after)
    return {"stop": stopped, "kill_exit_status": killed, "right_afterwards": len(after.seconds) - len(after.wrong)}


# ---------------------------------------------------------------------- all of it


def prove(log: Path, *, clients: int, seconds: float, pictures: int = 8) -> dict[str, Any]:
    """Do everything once, and return what was seen."""
    import self1e

    questions = make_questions(self1e.load("nano", device="cpu"), pictures)
    with running(log, upload_seconds=UPLOAD_SECONDS, max_body_bytes=MAX_BODY, max_requests=32) as process:
        load = summary(press(process, questions, clients, seconds), seconds)
        return {
            "clients": clients,
            "seconds": seconds,
            "load": load,
            "uploads": bad_uploads(process, questions[0]),
            "restart": stop_under_load(process, questions),
        }


def as_markdown(found: dict[str, Any]) -> str:
    """Write the results for people."""
    facts, load = found["facts"], found["load"]
    latency, memory = load["latency_seconds"], load["memory_megabytes"]
    rows = [
        ("clients at once, seconds", f"{found['clients']}, {found['seconds']:g}"),
        ("answers, per second", f"{load['answers']}, {load['answers_per_second']}"),
        ("answers that were not the direct call's", load["wrong"]),
        ("refused", ", ".join(f"{name}: {count}" for name, count in load["refused"].items()) or "none"),
        ("429 without Retry-After", load["refused_without_retry_after"]),
        ("latency: median, p95, p99, longest (s)", ", ".join(str(value) for value in latency.values())),
        ("memory: most in the first half, in the second (MB)", f"{memory['first_half']}, {memory['second_half']}"),
        ("slow body, oversized body", f"{found['uploads']['slow']}, {found['uploads']['oversized']}"),
        (
            "SIGTERM under load: status, answers, wrong",
            "{exit_status}, {answers}, {wrong}".format(**found["restart"]["stop"]),
        ),
        ("right answers after stop and after kill", f"{found['restart']['right_afterwards']} of 2"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    told = "\n".join(f"* {name}: `{value}`" for name, value in facts.items())
    head = (
        "# The service under load\n\nMade by `benchmarks/service.py`, which says what is checked.\n\n| | |\n|---|---|"
    )
    return f"{head}\n{table}\n\n{told}\n"


def main() -> None:
    """Run, print, and write where it was asked for."""
    import tempfile

    import torch
    from common import facts

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = prove(Path(folder) / "log", clients=arguments.clients, seconds=arguments.seconds)
    found["facts"] = facts(torch.device("cpu"), torch.float32) | {"cores": os.cpu_count()}
    print(json.dumps(found, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(as_markdown(found), "utf-8")


if __name__ == "__main__":
    main()
