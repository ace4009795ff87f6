"""How far a long job is: its rate, and the time that is left."""

import time
from collections import deque
from collections.abc import Callable

EVERY = 10.0
"""Seconds between two lines."""
WINDOW = 60.0
"""Seconds over which the rate is taken, so that it is that of now."""


class Progress:
    """Prints a line now and then.

    Args:
        total: images of the job.
        done: of them, before it began.
        clock: seconds.
    """

    def __init__(self, total: int, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done, self._clock = total, done, clock
        self._begun, self._before = clock(), done
        self._last = self._begun
        self._seen = deque([(self._begun, done)])

    def add(self, images: int) -> None:
        """So many more are done."""
        self.done += images
        now = self._clock()
        if now - self._last >= EVERY:
            self._last = now
            self._seen.append((now, self.done))
            while now - self._seen[0][0] > WINDOW and len(self._seen) > 2:
                self._seen.popleft()
            print(self.line(), flush=True)

    def line(self) -> str:
        """`12,000 of 20,000 images (60 %), 41.2 a second, 3 min left`."""
        (then, before), (now, done) = self._seen[0], self._seen[-1]
        rate = (done - before) / max(now - then, 1e-9)
        left = f"{duration((self.total - self.done) / rate)} left" if rate else "nothing done for a while"
        share = 100 * self.done / self.total
        return f"{self.done:,} of {self.total:,} images ({share:.0f} %), {rate:.1f} a second, {left}"

    def summary(self) -> str:
        """What this process did: `20,000 images in 8 min (41.2 a second)`."""
        seconds = self._clock() - self._begun
        mine = self.done - self._before
        return f"{mine:,} images in {duration(seconds)} ({mine / max(seconds, 1e-9):.1f} a second)"


def duration(seconds: float) -> str:
    """Seconds for people: `45 s`, `12 min`, `3.5 h`, `2.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
