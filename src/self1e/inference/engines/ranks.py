"""Processes that ``torchrun`` has started: each takes every n-th picture, the first one keeps the manifest.

They need no process group and no GPU: outcomes, a few kilobytes each, go through torchrun's key-value store.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from self1e.errors import OutputError, Self1EError
from self1e.inference.engines.share import Outcome, Plan, check_model, do_share
from self1e.inference.folder import FolderReport
from self1e.machine import process_count, process_index

_PATIENCE = 1800.0  # seconds without news from a process; torchrun itself ends all when one dies
_LEAVING = 10.0  # seconds to finish a picture when all are to stop, and to read the end's report
_POLL = 0.05

_END = "end"


@dataclass(frozen=True)
class _Stopped:
    """In place of an outcome: this process does no more pictures."""

    problem: str = ""
    """Why, unless somebody has asked for it."""


def own_device(device: str) -> str:
    """Give each process of a machine its own GPU; what is named otherwise stays as it is."""
    import torch

    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


class Ranks:
    """This process among those that share a folder run.

    Args:
        store: A ``torch.distributed.Store`` of this run alone.
        index: Which process this is; 0 keeps the manifest.
        count: How many there are.
    """

    def __init__(self, store: Any, index: int, count: int) -> None:
        self._store = store
        self.index = index
        self.count = count

    @classmethod
    def from_environment(cls) -> Ranks:
        """Find the other processes by what ``torchrun`` has set."""
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        try:
            store, index, count = next(iter(rendezvous("env://")))
        except (RuntimeError, ValueError) as error:
            raise OutputError(
                f"Process {process_index()} of {process_count()} does not find the others: {error}. Start all with "
                "torchrun, or unset RANK and WORLD_SIZE."
            ) from error
        return cls(PrefixStore("self1e-folder", store), index, count)

    def conduct(
        self,
        model: Any,
        settings: dict[str, Any],
        out: Path,
        stop: threading.Event,
        lead: Callable[[], FolderReport],
    ) -> FolderReport:
        """Lead as process 0, otherwise do a share; all return the same report."""
        if self.index:
            return self._follow(model, settings, stop)
        try:
            report = lead()
        except BaseException as error:
            self._post(_END, _Stopped(str(error) or type(error).__name__))
            raise
        self._post(_END, report)
        self._let_read()
        return report

    def run(self, model: Any, plan: Plan, stop: threading.Event, tell: Callable[[Outcome], None]) -> bool:
        """Do the own share, and tell of all pictures in their order."""
        self._post("plan", plan)
        order = _InOrder(self, len(plan.jobs), stop, tell)
        do_share(model, plan, plan.jobs[:: self.count], order.add, stop)
        return order.catch_up(wait=True)

    def _follow(self, model: Any, settings: dict[str, Any], stop: threading.Event) -> FolderReport:
        """Do a share; stay until the first process has written the files for all."""
        plan = self._wait_for(("plan", _END))
        if isinstance(plan, Plan):
            self._do_own(model, plan, stop)
            plan = self._wait_for((_END,))
        self._store.add("read", 1)
        if isinstance(plan, _Stopped):
            raise OutputError(f"Process 0 has ended the run: {plan.problem}")
        return plan

    def _do_own(self, model: Any, plan: Plan, stop: threading.Event) -> None:
        number = self.index

        def post(outcome: Outcome) -> None:
            nonlocal number
            self._post(_key(number), outcome)
            number += self.count

        try:
            check_model(model, plan.settings)
            do_share(model, plan, plan.jobs[self.index :: self.count], post, stop)
            self._post(_key(number), _Stopped())  # nobody asks for it if the share was finished
        except Self1EError as error:
            self._post(_key(number), _Stopped(str(error)))

    def _wait_for(self, keys: tuple[str, ...]) -> Any:
        """Wait, as long as a run takes, for the first process to say something."""
        while True:
            for key in keys:
                if self._store.check([key]):
                    return pickle.loads(self._store.get(key))
            time.sleep(_POLL)

    def has(self, number: int) -> bool:
        """Say whether another process has posted its outcome for this picture."""
        return self._store.check([_key(number)])

    def take(self, number: int, stop: threading.Event) -> Outcome | _Stopped:
        """Wait for another process's outcome."""
        key = _key(number)
        end, leaving = time.monotonic() + _PATIENCE, 0.0
        while not self._store.check([key]):
            if stop.is_set():
                leaving = leaving or time.monotonic() + _LEAVING
            if leaving and time.monotonic() > leaving:
                return _Stopped()
            if time.monotonic() > end:
                raise OutputError(
                    f"A process has not been heard of for {_PATIENCE / 60:.0f} minutes; run the same again."
                )
            time.sleep(_POLL)
        found = pickle.loads(self._store.get(key))
        self._store.delete_key(key)
        return found

    def _post(self, key: str, content: Any) -> None:
        self._store.set(key, pickle.dumps(content))

    def _let_read(self) -> None:
        """Stay until the others have read the end, for without torchrun the store ends with this process."""
        end = time.monotonic() + _LEAVING
        while self._store.add("read", 0) < self.count - 1 and time.monotonic() < end:
            time.sleep(_POLL)


class _InOrder:
    """Tells of the pictures in their order, though several processes do them."""

    def __init__(self, ranks: Ranks, total: int, stop: threading.Event, tell: Callable[[Outcome], None]) -> None:
        self._ranks = ranks
        self._total = total
        self._stop = stop
        self._tell = tell
        self._own: deque[Outcome] = deque()
        self._told = 0
        self._ended = False

    def add(self, outcome: Outcome) -> None:
        """Take the own process's next outcome, and tell of what is there."""
        self._own.append(outcome)
        self.catch_up(wait=False)

    def catch_up(self, *, wait: bool) -> bool:
        """Tell of what is there, or wait for all; True if all have been told of."""
        while self._told < self._total and not self._ended:
            found = self._next(wait)
            if found is None:
                break
            if isinstance(found, _Stopped):
                if found.problem:
                    raise OutputError(found.problem)
                self._ended = True  # what follows a gap is done again: the manifest keeps the order of the pictures
                self._stop.set()
            else:
                self._tell(found)
                self._told += 1
        return self._told == self._total

    def _next(self, wait: bool) -> Outcome | _Stopped | None:
        if self._told % self._ranks.count == 0:
            if self._own:
                return self._own.popleft()
            return _Stopped() if wait else None
        if wait or self._ranks.has(self._told):
            return self._ranks.take(self._told, self._stop)
        return None


def _key(number: int) -> str:
    """Where the outcome of the picture with this number is put."""
    return f"outcome/{number}"
