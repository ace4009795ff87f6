"""Batches for a network: one thread classifies together what many requests ask at the same time."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from ..runtime import BATCH, Classifier


class FullError(RuntimeError):
    """As many images are on their way as there may be; the caller should come again later."""


class Job(NamedTuple):
    """An image that waits.

    Attributes:
        classifier: who is asked.
        pixels: uint8 [views, size, size, 3], of its `inputs.load`.
        answer: an `Answer` will be there.
    """

    classifier: Classifier
    pixels: np.ndarray
    answer: Future

    @property
    def kind(self) -> tuple[int, tuple[int, ...]]:
        """Jobs of one kind can be classified together."""
        return id(self.classifier), self.pixels.shape


class Batcher:
    """One thread that computes. Jobs of any number of classifiers may wait in it; a batch is of one, and of one shape.

    Args:
        most: images in a batch.
        wait: seconds that an image waits for others; none where no others are on their way.
        room: images that may be on their way at once, decoded or not.
        seen: called with the size of each batch, by the thread.
    """

    def __init__(
        self, most: int = BATCH, wait: float = 0.005, room: int = 256, seen: Callable[[int], None] = lambda size: None
    ) -> None:
        self.most, self.wait, self.room, self.seen = most, wait, room, seen
        self.held = 0
        self._waiting: list[Job] = []
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    @contextmanager
    def places(self, count: int) -> Iterator[None]:
        """Room for so many images within the block; no more than `room` are promised at once.

        Raises:
            FullError: if there is none.
        """
        with self._changed:
            if self.held + count > self.room:
                raise FullError(f"{self.held} images are on their way, of {self.room} that may be. Try again later.")
            self.held += count
        try:
            yield
        finally:
            with self._changed:
                self.held -= count

    def submit(self, classifier: Classifier, pixels: np.ndarray) -> Future:
        """Let an image be classified, in a place of one's own; if its answer is cancelled in time, it is not."""
        job = Job(classifier, pixels, Future())
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        return job.answer

    @property
    def alive(self) -> bool:
        """Whether anything will be answered."""
        return self._thread.is_alive() and not self._closed

    def close(self, seconds: float = 5.0) -> None:
        """Finish what waits, in so many seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _work(self) -> None:
        while batch := self._next():
            batch = [job for job in batch if job.answer.set_running_or_notify_cancel()]
            if batch:
                self.seen(len(batch))
                self._answer(batch)
            del batch  # or a network that was swapped would stay in memory until somebody asks again

    def _next(self) -> list[Job]:
        """The next batch; none when the batcher is closed and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            self._changed.wait_for(lambda: len(self._waiting) >= min(self.most, self.held) or self._closed, self.wait)
            batch = [job for job in self._waiting if job.kind == self._waiting[0].kind][: self.most]
            taken = set(map(id, batch))
            self._waiting = [job for job in self._waiting if id(job) not in taken]
            return batch

    def _answer(self, batch: list[Job]) -> None:
        try:
            answers = batch[0].classifier.answer(np.stack([job.pixels for job in batch]))
        except Exception as error:  # of a runtime: those who asked hear of it, and the thread goes on
            for job in batch:
                job.answer.set_exception(error)
        else:
            for job, answer in zip(batch, answers, strict=True):
                job.answer.set_result(answer)
