"""The command itself, over a real socket: signals, keys, a fuzzer. Minutes long."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from self1e.serving import schemas

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

KEY = "0123456789abcdef-live"


class Live:
    """``self1e serve`` in a process of its own."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-m", "self1e", "serve", "--port", "0", "--device", "cpu", *arguments]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment
        )
        self.lines: list[str] = []
        self.port = 0
        self._is_up = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()
        assert self._is_up.wait(240), self.lines

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            if found and not self.port:
                self.port = int(found[1])
                self._is_up.set()

    def ask(self, method: str, path: str, content: Any = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        body = None if content is None else json.dumps(content)
        connection.request(method, path, body, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found


@pytest.fixture
def live() -> Iterator[Callable[..., Live]]:
    started: list[Live] = []

    def start(*arguments: str, **environment: str) -> Live:
        started.append(Live(*arguments, **environment))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


@pytest.fixture
def encoded(picture) -> str:
    import base64

    return base64.b64encode(picture).decode()


def test_a_signal_lets_accepted_work_be_finished(live, encoded):
    service = live()
    queries = [f"number {k}" for k in range(64)]
    answers: list[tuple[int, bytes]] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(
                service.ask("POST", schemas.SEGMENT, {"picture": encoded, "queries": queries})
            )
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    while b"self1e_accepted_requests 4.0" not in service.ask("GET", schemas.METRICS)[1]:
        assert not answers, "too fast for this test"
        time.sleep(0.01)
    service.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(240)
    assert [status for status, _ in answers] == [200] * 4
    assert all(len(json.loads(content)["results"]) == 64 for _, content in answers)
    assert service.process.wait(60) in (0, -signal.SIGTERM)
    logged = [json.loads(line) for line in service.lines if line.startswith("{")]
    assert [line["status"] for line in logged if line.get("route") == schemas.SEGMENT] == [200] * 4
    assert encoded[:50] not in "".join(service.lines)
    assert "number 1" not in "".join(service.lines)


def test_other_addresses_need_keys(live):
    command = [sys.executable, "-m", "self1e", "serve", "--host", "0.0.0.0"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert refused.returncode == 2
    assert "SELF1E_API_KEYS" in refused.stderr
    service = live(SELF1E_API_KEYS=KEY)
    assert service.ask("GET", schemas.MODELS)[0] == 401
    assert service.ask("GET", schemas.MODELS, Authorization=f"Bearer {KEY}")[0] == 200
    assert KEY not in "".join(service.lines)


def test_schemathesis_finds_no_failure(live, encoded):
    """Requests that fit the schema and requests that do not: never a 5xx, always the promised kind of answer."""
    pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install schemathesis")
    service = live("--set", "deadline_seconds=60")
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{service.port}/openapi.json",
        "--header", f"{schemas.DEADLINE}: 60",  # a deadline of 5e-324 s is missed, and 504 says so, rightly
        "--mode", "all", "--max-examples", os.environ.get("SELF1E_FUZZ_EXAMPLES", "30"), "--seed", "1",
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
    ]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert found.returncode == 0, found.stdout[-5000:] + found.stderr[-2000:]
    assert service.ask("GET", schemas.READY)[0] == 200


def test_the_lines_of_the_page_work(live, tmp_path):
    """Every line with curl in docs/service.md, as it stands there but for the port."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    root = Path(__file__).parents[2]
    shutil.copy(root / "src" / "self1e" / "assets" / "astronaut.jpg", tmp_path / "street.jpg")
    service = live()
    blocks = re.findall(
        r"^```sh\n(.*?)^```$", (root / "docs" / "service.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    lines = "".join(block for block in blocks if "curl" in block).replace(":8000", f":{service.port}")
    assert lines.count("curl") == 7
    script = "set -eu\n" + lines.replace("curl ", "curl --fail-with-body ")
    found = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr
    assert "event: done" in found.stdout
