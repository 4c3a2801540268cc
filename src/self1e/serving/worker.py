"""One thread owns the model; queries of many requests go through it together.

    requests --> jobs --> | a b c d ... | --> one pass over what fits together --> answers
                            first come

A job of queries is taken in slices, so that a large one does not hold up the rest: what is left of it goes to the end
of the line. A job of steps (encoding a picture, a turn of a conversation, a semantic map) is taken one step at a time.
Queries share a pass if their options are the same. Only a lone job waits for company, a few milliseconds; under load
company is there anyway.

A job that is cancelled or late is dropped before its next slice or step. Nothing here knows HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from self1e.serving.logs import LOGGER
from self1e.serving.metrics import Metrics
from self1e.structures import Segmentation

_log = logging.getLogger(LOGGER)


class ClosedError(RuntimeError):
    """The worker takes no more jobs."""


@dataclass(eq=False, kw_only=True)
class Job:
    """Something for the model to do."""

    deadline: float
    """On the clock of ``time.monotonic``."""
    future: Future[Any] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    is_cancelled: bool = False

    def cancel(self) -> None:
        """Give it up, from any thread; what is being computed right now is computed to its end."""
        self.is_cancelled = True

    def abandon(self) -> None:
        """Leave things in order when it is dropped."""

    def succeed(self, value: Any) -> None:
        """Hand the answer over, if anybody still waits for it."""
        with suppress(InvalidStateError):
            self.future.set_result(value)

    def fail(self, error: BaseException) -> None:
        """Hand an error over."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(eq=False, kw_only=True)
class Queries(Job):
    """Queries about one encoded picture; its answer is what ``model.segment`` returns for them."""

    encoded: Any
    queries: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]
    """Keywords of ``segment_batch``; jobs with the same share passes."""
    done: list[Segmentation] = field(default_factory=list)
    taken: int = 0

    @property
    def left(self) -> int:
        """Queries not yet taken."""
        return len(self.queries) - self.taken

    def take(self, room: int) -> tuple[str, ...]:
        """Return the next slice."""
        some = self.queries[self.taken : self.taken + room]
        self.taken += len(some)
        return some


@dataclass(frozen=True)
class Final:
    """What the last step of a job yields: the job's answer."""

    value: Any


@dataclass(eq=False, kw_only=True)
class Steps(Job):
    """Work in steps, of which the last one yields `Final`."""

    steps: Iterator[Any]
    tell: Callable[[Any], None] | None = None
    """Called with what the other steps yield, in the worker's thread."""

    def abandon(self) -> None:
        """Close the generator: a turn of a conversation then keeps what was said."""
        close = getattr(self.steps, "close", None)
        if close is not None:
            close()


class Worker:
    """The thread that owns the model.

    Args:
        model: A ``Self1E``.
        metrics: Where it counts.
        batch_queries: Most queries of one pass.
        batch_seconds: How long a lone job of queries waits for others.
    """

    def __init__(self, model: Any, metrics: Metrics, *, batch_queries: int = 16, batch_seconds: float = 0.003) -> None:
        self._model = model
        self._metrics = metrics
        self._most, self._window = batch_queries, batch_seconds
        self._jobs: deque[Job] = deque()
        self._condition = threading.Condition()
        self._is_closing = self._is_given_up = False
        self._pace = 0.1
        self._thread = threading.Thread(target=self._run, name="self1e-model", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """True while it takes jobs."""
        return self._thread.is_alive() and not self._is_closing

    @property
    def wait_seconds(self) -> float:
        """About how long a job that comes now would wait."""
        return self._pace * (len(self._jobs) + 1)

    def submit(self, job: Job) -> Job:
        """Put a job at the end of the line; how many may wait is the caller's business."""
        with self._condition:
            if self._is_closing:
                raise ClosedError
            self._jobs.append(job)
            self._metrics.waiting.set(len(self._jobs))
            self._condition.notify_all()
        return job

    def close(self, seconds: float) -> bool:
        """Take no more jobs, and finish those that are there; after ``seconds`` drop them.

        Returns:
            True if all were finished.
        """
        with self._condition:
            self._is_closing = True
            self._condition.notify_all()
        if not self._thread.ident:
            return True
        self._thread.join(seconds)
        is_done = not self._thread.is_alive()
        self._is_given_up = not is_done
        return is_done

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while self._work():
            pass  # between two rounds nothing is held of what was done, least of all a picture

    def _work(self) -> bool:
        """Wait for jobs and take the first a slice or a step on; False if there will be none any more."""
        with self._condition:
            self._condition.wait_for(lambda: self._jobs or self._is_closing)
            if not self._jobs:
                return False
            self._wait_for_company()
            taken = self._take()
            self._metrics.waiting.set(len(self._jobs))
        if not taken:
            return True
        start = time.monotonic()
        if isinstance(taken[0], Steps):
            left = self._step(taken[0])
        else:
            left = self._pass([job for job in taken if isinstance(job, Queries)])
        seconds = time.monotonic() - start
        self._metrics.model_seconds.inc(seconds)
        self._pace += 0.2 * (seconds / len(taken) - self._pace)
        with self._condition:
            self._jobs.extend(left)
        return True

    def _wait_for_company(self) -> None:
        """Wait a little if all that is there could share a pass, and does not fill one."""
        first = self._jobs[0]
        while isinstance(first, Queries) and not self._is_closing:
            fitting = [job for job in self._jobs if isinstance(job, Queries) and job.options == first.options]
            remaining = first.arrived + self._window - time.monotonic()
            is_full = sum(job.left for job in fitting) >= self._most
            if len(fitting) < len(self._jobs) or is_full or remaining <= 0 or first.taken:
                return
            self._condition.wait(remaining)

    def _take(self) -> list[Job]:
        """Take the first job, and if it is one of queries what shares its pass."""
        for job in [job for job in self._jobs if self._is_over(job)]:
            self._jobs.remove(job)
        if not self._jobs:
            return []
        first = self._jobs[0]
        if not isinstance(first, Queries):
            return [self._jobs.popleft()]
        taken: list[Job] = []
        room = self._most
        for job in list(self._jobs):
            if room > 0 and isinstance(job, Queries) and job.options == first.options:
                taken.append(job)
                room -= job.left
                self._jobs.remove(job)
        return taken

    def _is_over(self, job: Job) -> bool:
        """Drop a job that nobody waits for any more."""
        is_late = time.monotonic() > job.deadline
        if not (job.is_cancelled or is_late or self._is_given_up):
            return False
        self._metrics.dropped.labels("cancelled" if job.is_cancelled else "late" if is_late else "stopped").inc()
        self._try(job.abandon)
        job.fail(TimeoutError())
        return True

    def _pass(self, jobs: list[Queries]) -> list[Job]:
        """Answer a slice of each; return those that are not done."""
        room = self._most
        slices = []
        for job in jobs:
            slices.append(job.take(room))
            room -= len(slices[-1])
        self._metrics.batch_queries.observe(sum(map(len, slices)))
        self._metrics.batch_requests.observe(len(jobs))
        try:
            results = self._segment(jobs, slices)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].fail(error)
                return []
            results = [self._alone(job, words) for job, words in zip(jobs, slices, strict=True)]
        left: list[Job] = []
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, Exception):
                job.fail(result)
                continue
            job.done.append(result)
            self._metrics.queries.inc(len(result))
            if job.left:
                left.append(job)
            else:
                job.succeed(joined(job.done))
        return left

    def _segment(self, jobs: list[Queries], slices: list[tuple[str, ...]]) -> list[Any]:
        requests = [(job.encoded, words) for job, words in zip(jobs, slices, strict=True)]
        return self._model.segment_batch(requests, **dict(jobs[0].options))

    def _alone(self, job: Queries, words: tuple[str, ...]) -> Segmentation | Exception:
        """Answer one job of a pass that failed: it may have been another's fault."""
        try:
            return self._segment([job], [words])[0]
        except Exception as error:
            return error

    def _step(self, job: Steps) -> list[Job]:
        """Take one step of a job; return it if it is not done."""
        try:
            value = next(job.steps)
            if not isinstance(value, Final):
                if job.tell is not None:
                    job.tell(value)
                return [job]
        except Exception as error:
            self._try(job.abandon)
            job.fail(error)
        else:
            self._try(job.abandon)
            job.succeed(value.value)
        return []

    def _try(self, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception as error:  # the thread outlives whatever happens in a job
            _log.error("a job could not be closed", exc_info=error)


def joined(results: list[Segmentation]) -> Segmentation:
    """Put slices of one picture's queries together again."""
    if len(results) == 1:
        return results[0]
    logits = [one.mask_logits for one in results if one.mask_logits is not None]
    return replace(
        results[0],
        queries=tuple(query for one in results for query in one.queries),
        rles=tuple(rle for one in results for rle in one.rles),
        scores=np.concatenate([one.scores for one in results]),
        text=tuple(text for one in results for text in one.text),
        mask_logits=np.concatenate(logits) if len(logits) == len(results) else None,
    )
