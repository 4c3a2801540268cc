"""The model's thread: what shares a pass, what is dropped, what happens at the end; over a model of numbers."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from self1e.serving.metrics import Metrics
from self1e.serving.worker import ClosedError, Final, Queries, Steps, Worker
from self1e.structures import Segmentation


class Numbers:
    """Answers a query with a mask as large as its length; waits before each pass while it is held."""

    def __init__(self) -> None:
        self.passes: list[list[tuple[Any, tuple[str, ...]]]] = []
        self.go, self.is_in = threading.Event(), threading.Event()
        self.go.set()

    def segment_batch(self, requests: Any, **options: Any) -> list[Segmentation]:
        self.is_in.set()
        assert self.go.wait(30)
        self.passes.append([(picture, tuple(words)) for picture, words in requests])
        if any(picture == "bad" for picture, _ in requests):
            raise ValueError("bad")
        return [self.answer(words) for _, words in requests]

    @staticmethod
    def answer(words: Any) -> Segmentation:
        masks = [np.arange(40).reshape(5, 8) < len(word) for word in words]
        return Segmentation.from_masks(masks, [0.5] * len(masks), tuple(words))


@pytest.fixture
def model() -> Any:
    return Numbers()


@pytest.fixture
def worker(model) -> Any:
    worker = Worker(model, Metrics(), batch_queries=4, batch_seconds=0.05)
    worker.start()
    yield worker
    model.go.set()
    assert worker.close(30)


def soon() -> float:
    return time.monotonic() + 60


def ask(worker: Worker, *words: str, picture: Any = "p", deadline: float | None = None, **options: Any) -> Queries:
    job = Queries(deadline=deadline or soon(), encoded=picture, queries=words, options=tuple(sorted(options.items())))
    worker.submit(job)
    return job


def test_lone_jobs_wait_for_company(model):
    worker = Worker(model, Metrics(), batch_queries=4, batch_seconds=60)
    worker.start()
    jobs = [ask(worker, word) for word in ("a", "bb", "ccc", "dddd")]  # four fill a pass
    results = [job.future.result(30) for job in jobs]
    assert results == [Numbers.answer([word]) for word in ("a", "bb", "ccc", "dddd")]
    assert len(model.passes) == 1
    assert worker.close(30)


def test_a_lone_job_does_not_wait_for_long(worker):
    start = time.monotonic()
    ask(worker, "a").future.result(30)
    assert time.monotonic() - start < 10


def test_only_equal_options_share_a_pass(worker, model):
    model.go.clear()
    first = ask(worker, "a")
    assert model.is_in.wait(30)
    jobs = [ask(worker, "b", threshold=0), ask(worker, "c", threshold=1), ask(worker, "d", threshold=0, picture="q")]
    model.go.set()
    for job in [first, *jobs]:
        job.future.result(30)
    assert model.passes[1:] == [[("p", ("b",)), ("q", ("d",))], [("p", ("c",))]]


def test_a_large_job_goes_in_slices_and_others_go_in_between(worker, model):
    model.go.clear()
    words = tuple("x" * (k + 1) for k in range(10))
    large = ask(worker, *words)
    assert model.is_in.wait(30)
    small = ask(worker, "small")
    model.go.set()
    assert large.future.result(30) == Numbers.answer(words)
    assert small.future.result(30) == Numbers.answer(["small"])
    assert len(model.passes[0][0][1]) == 4
    assert any("small" in words for one in model.passes[:2] for _, words in one)
    assert all(sum(len(words) for _, words in one) <= 4 for one in model.passes)


def test_one_jobs_fault_is_not_anothers(worker, model):
    model.go.clear()
    ask(worker, "first")
    assert model.is_in.wait(30)
    good, bad = ask(worker, "good"), ask(worker, "x", picture="bad")
    model.go.set()
    assert good.future.result(30) == Numbers.answer(["good"])
    with pytest.raises(ValueError, match="bad"):
        bad.future.result(30)


def test_cancelled_and_late_jobs_are_never_computed(worker, model):
    model.go.clear()
    ask(worker, "first")
    assert model.is_in.wait(30)
    cancelled, late = ask(worker, "cancelled"), ask(worker, "late", deadline=time.monotonic())
    kept = ask(worker, "kept")
    cancelled.cancel()
    model.go.set()
    kept.future.result(30)
    for job in (cancelled, late):
        with pytest.raises(TimeoutError):
            job.future.result(30)
    assert {word for one in model.passes for _, words in one for word in words} == {"first", "kept"}
    value = worker._metrics.registry.get_sample_value
    assert value("self1e_dropped_jobs_total", {"reason": "cancelled"}) == 1
    assert value("self1e_dropped_jobs_total", {"reason": "late"}) == 1


def test_steps_take_turns(worker):
    order: list[str] = []
    ready = threading.Event()

    def steps(name: str) -> Any:
        assert ready.wait(30)
        for _ in range(3):
            order.append(name)
            yield name
        yield Final(name.upper())

    told: list[Any] = []
    jobs = [worker.submit(Steps(deadline=soon(), steps=steps(name), tell=told.append)) for name in "ab"]
    ready.set()
    assert [job.future.result(30) for job in jobs] == ["A", "B"]
    assert order == list("ababab")
    assert told == list("ababab")


def test_a_cancelled_generator_is_closed(worker):
    closed, begun = threading.Event(), threading.Event()

    def steps() -> Any:
        try:
            while True:
                begun.set()
                yield
        finally:
            closed.set()

    job = worker.submit(Steps(deadline=soon(), steps=steps()))
    assert begun.wait(30)
    job.cancel()
    assert closed.wait(30)
    with pytest.raises(TimeoutError):
        job.future.result(30)


def test_the_thread_outlives_whatever_happens_in_a_job(worker):
    def steps() -> Any:
        try:
            yield
        finally:
            raise MemoryError

    def fail() -> Any:
        raise KeyError("x")
        yield

    jobs = [worker.submit(Steps(deadline=soon(), steps=one)) for one in (fail(), steps())]
    jobs[1].cancel()
    for job in jobs:
        with pytest.raises((KeyError, TimeoutError, MemoryError)):
            job.future.result(30)
    assert ask(worker, "fine").future.result(30) == Numbers.answer(["fine"])


def test_closing_takes_no_more_and_drops_what_takes_too_long(model):
    worker = Worker(model, Metrics(), batch_queries=2, batch_seconds=0)
    worker.start()
    model.go.clear()
    jobs = [ask(worker, *"abcdef"), ask(worker, "g")]
    assert model.is_in.wait(30)
    assert not worker.close(0.01)
    with pytest.raises(ClosedError):
        ask(worker, "late")
    assert not worker.is_alive
    model.go.set()
    with pytest.raises(TimeoutError):  # closing gave up waiting, so the rest was dropped
        jobs[0].future.result(30)


def test_closing_waits_for_accepted_work(model):
    worker = Worker(model, Metrics(), batch_queries=2, batch_seconds=0)
    worker.start()
    jobs = [ask(worker, *"abcdef"), ask(worker, "g")]
    assert worker.close(30)
    assert jobs[0].future.result(0) == Numbers.answer("abcdef")
    assert jobs[1].future.result(0) == Numbers.answer("g")
