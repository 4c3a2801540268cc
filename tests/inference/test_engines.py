"""Folder runs on several processes leave what a run in one leaves, byte for byte, whoever dies meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support import STAND_IN

from self1e.errors import OutputError, SettingError
from self1e.inference import folder as folder_module
from self1e.inference.engines import choose_engine
from self1e.inference.engines.share import Outcome, Plan, do_share, make_shards
from self1e.inference.folder import FolderReport, segment_folder
from self1e.inference.manifest import Manifest

FORMATS = ("mask", "coco")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven pictures in two folders, one of them broken; paths are relative to here."""
    monkeypatch.chdir(tmp_path)
    for number in range(7):
        path = Path("photos") / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").rotate(number * 20).resize((30 + number, 40)).convert("RGB").save(path)
    Path("photos/a/4.png").write_bytes(b"broken")
    return Path("photos")


@pytest.fixture
def make_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    names: dict[str, Any] = {}
    exec(STAND_IN, names)
    monkeypatch.setattr(folder_module, "fingerprint", lambda model: "none")
    import self1e.inference.engines.share as share

    monkeypatch.setattr(share, "fingerprint", lambda model: "none")
    return names["StandIn"]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file with its content."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Shards:
    """An engine in this process that cuts a run as Ray's does."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def conduct(self, model: Any, settings: Any, out: Path, stop: Any, lead: Callable[[], FolderReport]) -> Any:
        return lead()

    def run(self, model: Any, plan: Plan, stop: threading.Event, tell: Callable[[Outcome], None]) -> bool:
        told: dict[int, list[Outcome]] = {}
        shards = make_shards(plan.jobs, self.workers)
        for number, shard in reversed(list(enumerate(shards))):  # as if the last worker were the fastest
            do_share(model, plan, shard, told.setdefault(number, []).append, threading.Event())
        for number in range(len(shards)):
            for outcome in told[number]:
                tell(outcome)
        return True


def test_shards_follow_each_other_and_are_many_enough() -> None:
    for total, workers in ((0, 2), (1, 4), (7, 2), (64, 2), (1000, 3)):
        shards = make_shards(range(total), workers)
        assert [job for shard in shards for job in shard] == list(range(total))
        assert len(shards) >= min(total, 4 * workers)
        assert all(1 <= len(shard) <= 16 for shard in shards)
    assert len(make_shards(range(64), 2)) == 8


@pytest.mark.parametrize("workers", [1, 3])
def test_shards_leave_what_a_local_run_leaves(photos: Path, make_model: Callable[[], Any], workers: int) -> None:
    told: list[tuple[str, bool]] = []
    local = segment_folder(make_model(), photos, "local", ["x", "y"], formats=FORMATS)
    report = segment_folder(
        make_model(), photos, "out", ["x", "y"], formats=FORMATS, engine=Shards(workers),
        on_record=lambda record, result, _: told.append((record.picture, result is not None)),
    )  # fmt: skip
    assert tree(Path("out")) == tree(Path("local"))
    assert (report.done, list(report.failed), report.combined) == (6, ["a/4.png"], [Path("out/coco.json")])
    assert report.failed == local.failed
    assert [picture for picture, is_done in told if not is_done] == ["a/4.png"]
    assert len(told) == 7


def test_a_run_goes_on_where_one_of_another_kind_stopped(photos: Path, make_model: Callable[[], Any]) -> None:
    segment_folder(make_model(), photos, "local", ["x", "y"], formats=FORMATS)
    stop = threading.Event()
    first = segment_folder(
        make_model(), photos, "out", ["x", "y"], formats=FORMATS, stop=stop, on_record=lambda *_: stop.set()
    )
    assert first.stopped
    (Path("out/b") / ("." + "0" * 32 + ".tmp")).parent.mkdir(exist_ok=True)
    (Path("out/b") / ("." + "0" * 32 + ".tmp")).write_bytes(b"half a mask")
    report = segment_folder(make_model(), photos, "out", ["x", "y"], formats=FORMATS, engine=Shards(2))
    assert (report.kept, report.done) == (first.done, 6 - first.done)
    assert tree(Path("out")) == tree(Path("local"))
    # Fewer queries: the files of the other one are gone, though a worker removes them.
    segment_folder(make_model(), photos, "local", ["x"], formats=FORMATS, existing="update")
    segment_folder(make_model(), photos, "out", ["x"], formats=FORMATS, existing="update", engine=Shards(2))
    assert set(tree(Path("out"))) == set(tree(Path("local")))
    assert not list(Path("out").rglob("*mask1.png"))


# ---------------------------------------------------------------------- ranks, as threads


class Store:
    """What ``torch.distributed`` calls a store, for threads."""

    def __init__(self) -> None:
        self._content: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def set(self, key: str, value: bytes) -> None:
        self._content[key] = value

    def get(self, key: str) -> bytes:
        return self._content[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self._content for key in keys)

    def delete_key(self, key: str) -> bool:
        return self._content.pop(key, None) is not None

    def add(self, key: str, amount: int) -> int:
        with self._lock:
            total = int(self._content.get(key, b"0")) + amount
            self._content[key] = str(total).encode()
        return total


def ranks(count: int) -> list[Any]:
    from self1e.inference.engines.ranks import Ranks

    store = Store()
    return [Ranks(store, index, count) for index in range(count)]


def together(engines: list[Any], run: Callable[[Any], Any]) -> list[Any]:
    """Let each engine run in a thread; return what each gave, or its error."""
    found: list[Any] = [None] * len(engines)

    def one(index: int) -> None:
        try:
            found[index] = run(engines[index])
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(engines))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert not any(thread.is_alive() for thread in threads)
    return found


@pytest.mark.parametrize("count", [2, 3, 9])
def test_ranks_leave_what_a_local_run_leaves(photos: Path, make_model: Callable[[], Any], count: int) -> None:
    segment_folder(make_model(), photos, "local", ["x", "y"], formats=FORMATS)
    done: list[str] = []

    class Watched(make_model):  # type: ignore[misc, valid-type]
        def segment(self, *arguments: Any, **settings: Any) -> Any:
            done.append(threading.current_thread().name)
            return super().segment(*arguments, **settings)

    def run(engine: Any) -> FolderReport:
        return segment_folder(Watched(), photos, "out", ["x", "y"], formats=FORMATS, engine=engine)

    reports = together(ranks(count), run)
    assert tree(Path("out")) == tree(Path("local"))
    assert all(report == reports[0] for report in reports)
    assert (reports[0].done, list(reports[0].failed)) == (6, ["a/4.png"])
    assert len(done) == 6  # each picture once
    assert len(set(done)) >= min(count, 3)  # each process some
    kept = together(ranks(count), run)
    assert [report.kept for report in kept] == [6] * count


def test_a_rank_that_is_stopped_stops_all_and_leaves_a_run_to_go_on_with(
    photos: Path, make_model: Callable[[], Any]
) -> None:
    segment_folder(make_model(), photos, "local", ["x"], formats=FORMATS)
    engines = ranks(2)
    stops = {engine: threading.Event() for engine in engines}

    class Stopping(make_model):  # type: ignore[misc, valid-type]
        def segment(self, picture: Any, *arguments: Any, **settings: Any) -> Any:
            if picture.source.endswith("6.png"):  # the fourth: of the second process
                stops[engines[1]].set()
            return super().segment(picture, *arguments, **settings)

    def run(engine: Any) -> FolderReport:
        return segment_folder(Stopping(), photos, "out", ["x"], formats=FORMATS, engine=engine, stop=stops[engine])

    reports = together(engines, run)
    assert all(report.stopped for report in reports)
    whole = Path("local/manifest.jsonl").read_bytes().splitlines()
    part = Path("out/manifest.jsonl").read_bytes().splitlines()
    assert part == whole[: len(part)]
    assert 4 <= len(part) < 7
    segment_folder(make_model(), photos, "out", ["x"], formats=FORMATS)
    assert {name: content for name, content in tree(Path("out")).items() if name != "manifest.jsonl"} == {
        name: content for name, content in tree(Path("local")).items() if name != "manifest.jsonl"
    }


def test_ranks_say_what_is_wrong_with_one_of_them(
    photos: Path, make_model: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = ranks(2)

    def run(engine: Any) -> FolderReport:
        model = make_model()
        model.dtype = "bfloat16" if engine.index else "float32"
        return segment_folder(model, photos, "out", ["x"], formats=FORMATS, engine=engine)

    first, second = together(engines, run)
    assert isinstance(first, OutputError)
    assert "with dtype bfloat16, the one that started it float32" in str(first)
    assert isinstance(second, OutputError)
    assert "Process 0 has ended the run" in str(second)
    engines = ranks(2)
    with Manifest(Path("out")):  # another run
        first, second = together(engines, run)
    assert "another run is writing" in str(first)
    assert "another run is writing" in str(second)


# ---------------------------------------------------------------------- choosing


def test_an_engine_that_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None: ...

    assert choose_engine("local", load) is None
    with pytest.raises(SettingError, match=r"engine='rya' is unknown. Did you mean 'ray'\?"):
        choose_engine("rya", load)
    with pytest.raises(SettingError, match="workers=2 is for engine='ray'"):
        choose_engine("local", load, 2)
    with pytest.raises(SettingError, match="at least 1"):
        choose_engine("ray", load, 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingError, match="without torchrun"):
        choose_engine("ray", load)


def test_workers_fit_the_cluster() -> None:
    from self1e.inference.engines.ray_data import _size_workers

    assert _size_workers({"CPU": 2.0}, None) == (1, {"num_cpus": 2})
    assert _size_workers({"CPU": 64.0}, None) == (16, {"num_cpus": 4})
    assert _size_workers({"CPU": 2.0}, 2) == (2, {"num_cpus": 1})
    assert _size_workers({"CPU": 64.0, "GPU": 8.0}, None) == (8, {"num_gpus": 1.0})
    assert _size_workers({"CPU": 64.0, "GPU": 2.0}, 4) == (4, {"num_gpus": 0.5})


# ---------------------------------------------------------------------- processes

RAY = """
import os, signal
from pathlib import Path
import ray
from self1e.inference import folder
folder.fingerprint = lambda model: "none"
from self1e.inference.engines.ray_data import RayEngine

def load():
    names = {}
    exec(os.environ["STAND_IN"], names)
    import self1e.inference.engines.share as share
    share.fingerprint = lambda model: "none"

    class Mortal(names["StandIn"]):
        def segment(self, picture, queries, **settings):
            grave = Path("grave")
            if picture.source.endswith("3.png") and not grave.exists():
                grave.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return super().segment(picture, queries, **settings)

    return Mortal()

ray.init(
    num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False,
    _temp_dir=os.environ["RAY_TEMP"],
)
names = {}
exec(os.environ["STAND_IN"], names)
engine = RayEngine(load, workers=2)
report = folder.segment_folder(names["StandIn"](), "photos", "out", ["x", "y"], formats=["mask", "coco"], engine=engine)
print(report.kept, report.done, sorted(report.failed), report.stopped)
ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_ray_cluster_whose_worker_is_killed_leaves_what_a_local_run_leaves(
    photos: Path, make_model: Callable[[], Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("ray.data")
    segment_folder(make_model(), photos, "local", ["x", "y"], formats=FORMATS)
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as short:  # a socket's path
        environment = {**os.environ, "STAND_IN": STAND_IN, "RAY_TEMP": short, "RAY_USAGE_STATS_ENABLED": "0"}
        environment |= {"RAY_agent_register_timeout_ms": "600000", "RAY_raylet_start_wait_time_s": "600"}
        done = subprocess.run(
            [sys.executable, "-c", RAY], env=environment, capture_output=True, text=True, timeout=1700
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[-2] == "0 6 ['a/4.png'] False"
    assert Path("grave").is_file()  # one has died
    assert tree(Path("out")) == tree(Path("local"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_torchrun_leaves_what_the_command_alone_leaves(photos: Path) -> None:
    arguments = ["segment", "photos", "-q", "the red circle", "-f", "mask,coco", "--device", "cpu"]
    alone = [sys.executable, "-m", "self1e", *arguments, "--out", "local"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "self1e"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.run(alone, env=environment, capture_output=True, text=True, timeout=250)
    assert first.returncode == 1, first.stderr[-3000:]  # the broken picture
    second = subprocess.run(
        [*torchrun, *arguments, "--out", "out"], env=environment, capture_output=True, text=True, timeout=500
    )
    assert second.returncode == 1, second.stderr[-3000:]
    assert tree(Path("out")) == tree(Path("local"))
    assert [line.replace("out/", "local/") for line in second.stdout.splitlines()] == first.stdout.splitlines()
    pictures = [json.loads(line)["picture"] for line in Path("out/manifest.jsonl").read_text("utf-8").splitlines()]
    assert len(pictures) == 7
