"""Reads batches ahead of the training loop, in threads."""

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from flanx.data.pipeline.batches import Batches

AHEAD = 2  # minimum number of batches read ahead
AHEAD_ROWS = 512  # minimum rows read ahead: more batches if small, as Python releases its lock only every 5 ms


class Loader(Iterator[dict[str, np.ndarray]]):
    """The batches from step `start` on, for the rows of this host, at least two read ahead; `close()` ends the threads.

    A second thread plans the next chunk of rows while the current one is read, so that `next` waits for neither. A
    read error is raised by `next`.
    """

    def __init__(self, batches: Batches, start: int = 0, rows: range | None = None) -> None:
        self._batches, self._rows = batches, rows
        each = max(1, batches.batch_size if rows is None else len(rows))
        self._ready: queue.Queue[Any] = queue.Queue(max(AHEAD, AHEAD_ROWS // each))
        self._stopped = threading.Event()
        self._next_chunk: queue.Queue[int | None] = queue.Queue()
        self._threads = [
            threading.Thread(target=self._read, args=(start,), name="batches", daemon=True),
            threading.Thread(target=self._plan, name="plans", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __next__(self) -> dict[str, np.ndarray]:
        if self._stopped.is_set():
            raise StopIteration
        item = self._ready.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item

    @property
    def ready(self) -> int:
        """Number of batches that `next` can return without waiting."""
        return self._ready.qsize()

    def close(self) -> None:
        """Ends the threads and discards the batches read ahead."""
        self._stopped.set()
        self._next_chunk.put(None)
        is_alive = True
        while is_alive:
            is_alive = any(
                thread.is_alive() for thread in self._threads
            )  # checked first, so that a thread's last batch is discarded too
            with contextlib.suppress(queue.Empty):
                while True:
                    self._ready.get_nowait()
            for thread in self._threads:
                thread.join(timeout=0.05)

    def _read(self, step: int) -> None:
        chunk = -1
        try:
            while not self._stopped.is_set():
                batch = self._batches.batch(step, self._rows)
                if (now := self._batches.chunk_of(step)) != chunk:
                    chunk = now
                    self._next_chunk.put(chunk + 1)
                self._put(batch)
                step += 1
        except BaseException as error:
            self._put(error)

    def _plan(self) -> None:
        while (chunk := self._next_chunk.get()) is not None:
            try:
                self._batches.chunk_plan(chunk)
            except BaseException:
                return  # the reading thread raises the same error

    def _put(self, item: Any) -> None:
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue
