"""What a run says while something takes long: one live line on a terminal, in a log one every few seconds; its clock.

It goes to stderr, for results go to stdout.
"""

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TextIO, TypeVar

EVERY = 3.0
"""Seconds between the lines in a log."""

Item = TypeVar("Item")


@dataclass
class Step:
    """Something that takes long, and how far it is.

    Args:
        what: is done.
        total: how many things are to be done; None where nobody can say.
        unit: what they are.
        done: of them.
        expected: seconds from begin to end, if there is a forecast, which may become better on the way.
        begun: by the monotonic clock.
    """

    what: str
    total: int | None = None
    unit: str = "images"
    done: int = 0
    expected: Callable[[], float | None] = lambda: None
    begun: float = field(init=False)

    def __post_init__(self) -> None:
        self.begun = time.monotonic()

    def advance(self, more: int = 1) -> None:
        """So many more are done; cheap enough for the inside of a loop."""
        self.done += more

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each counted when the next is asked for."""
        for item in items:
            yield item
            self.advance()

    def __str__(self) -> str:
        """`decoding: 320 of 1,000 images, 64 images/s, 11 s left`; without a total, for how long it has gone on."""
        seconds = time.monotonic() - self.begun
        if not self.total:
            counted = f": {self.done:,} {self.unit}" if self.done else ""
            return f"{self.what}{counted}, {duration(seconds)}{self._left(seconds)}"
        counted = f"{self.what}: {self.done:,} of {self.total:,} {self.unit}"
        if not self.done or not seconds:
            return f"{counted}, {duration(seconds)}"
        rate = self.done / seconds
        left = max(0, self.total - self.done) / rate
        return f"{counted}, {rate:,.{0 if rate >= 10 else 1}f} {self.unit}/s, {duration(left)} left"

    def _left(self, seconds: float) -> str:
        """By the forecast, if there is one; it may be wrong."""
        expected = self.expected()
        if expected is None:
            return ""
        left = expected - seconds
        return f", about {duration(left)} left" if left > 0 else f" ({duration(expected)} were forecast)"


_steps: list[Step] = []
"""What is going on, the outermost first."""
_written = [time.monotonic()]
"""When the last line was written: many short steps one after the other are heard of in time, too."""


def duration(seconds: float) -> str:
    """`42 s`, `12 min`."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


@contextlib.contextmanager
def step(what: str, total: int | None = None, unit: str = "images") -> Iterator[Step]:
    """For the block, show how far it is, as it tells by `advance` or `over`; within another step, behind that.

    Shown are steps of the main thread, for others work beside them; and none within `without_messages`.

    Args:
        what: is done.
        total: how many things are to be done; None where nobody can say.
        unit: what they are.
    """
    shown = Step(what, total, unit)
    if isinstance(sys.stdout, _Nowhere) or threading.current_thread() is not threading.main_thread():
        yield shown
        return
    display = contextlib.nullcontext() if _steps else _display()
    _steps.append(shown)
    try:
        with display:
            yield shown
    finally:
        _steps.remove(shown)


def track(items: Iterable[Item], what: str, total: int | None = None, unit: str = "images") -> Iterator[Item]:
    """The items, while a step shows how many of them are done."""
    with step(what, total, unit) as shown:
        yield from shown.over(items)


def describe() -> str:
    """What is going on, in a line."""
    return " | ".join(map(str, _steps))


def expect(left: Callable[[], float | None]) -> None:
    """The outermost step, if one is shown, says from now on how much of so many seconds after now is left.

    Args:
        left: seconds from now to its end, as far as they are known; asked for again with every line.
    """
    if _steps:
        outermost, now = _steps[0], time.monotonic()

        def expected() -> float | None:
            seconds = left()
            return None if seconds is None else now - outermost.begun + seconds

        outermost.expected = expected


def print_line(text: str) -> None:
    """Print to stdout, now; in a log, what is going on has been heard of by that."""
    print(text, flush=True)
    _written[0] = time.monotonic()


class _Nowhere(io.TextIOBase):
    """Where nothing that is written arrives."""

    def write(self, text: str) -> int:
        return len(text)


@contextlib.contextmanager
def without_messages(wanted: bool = True) -> Iterator[None]:
    """Within the block nothing is printed to stdout and no step is shown; warnings, which go to stderr, are."""
    with contextlib.redirect_stdout(_Nowhere()) if wanted else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _display() -> Iterator[None]:
    """Show on stderr as it is now, whatever is kept from it later (`runs.quiet`)."""
    with contextlib.ExitStack() as stack:
        out: TextIO = sys.stderr
        if out is sys.__stderr__:
            out = stack.enter_context(os.fdopen(os.dup(out.fileno()), "w", encoding="utf-8", errors="backslashreplace"))
        stack.enter_context(_live(out) if out.isatty() else _log(out))
        yield


def _live(out: TextIO) -> contextlib.AbstractContextManager[object]:
    """One line that changes, below what is printed meanwhile."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    return Live(
        console=Console(file=out),
        get_renderable=lambda: Text(describe(), overflow="ellipsis", no_wrap=True),
        refresh_per_second=4,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # a file gets what is printed as it is
    )


@contextlib.contextmanager
def _log(out: TextIO) -> Iterator[None]:
    """A thread writes lines, also while a single thing takes long."""
    over = threading.Event()
    _written[0] = max(_written[0], time.monotonic() - 2 / 3 * EVERY)  # what is over at once needs no line
    writer = threading.Thread(target=write_lines, args=(out, over), daemon=True)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()


def write_lines(out: TextIO, over: threading.Event) -> None:
    """Write what is going on, `EVERY` so many seconds, until it is over."""
    while not over.wait(max(0.0, _written[0] + EVERY - time.monotonic())):
        if time.monotonic() >= _written[0] + EVERY:  # nobody else has written meanwhile
            _written[0] = time.monotonic()
            print(f"  {describe()}", file=out, flush=True)


class Timer:
    """Where the time went: `with clock("decode"): ...` adds up seconds under a name, and images that were counted.

    Inside a block another may be opened; its seconds are its own and not those of the block around it. Blocks of other
    threads than the one that made the clock run beside these, and are not counted.
    """

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self._around: list[str] = []
        self._thread = threading.get_ident()

    @contextlib.contextmanager
    def __call__(self, name: str, total: int | None = None) -> Iterator[Step]:
        """Add the duration of the block to `seconds[name]`, and show how far it is.

        Args:
            name: of what is done.
            total: of how many images, if they are counted by the step that the block is given.
        """
        if threading.get_ident() != self._thread:
            yield Step(name, total)
            return
        self.seconds.setdefault(name, 0.0)
        self._around.append(name)
        start = time.perf_counter()
        try:
            with step(name, total) as shown:
                yield shown
        finally:
            taken = time.perf_counter() - start
            self._around.pop()
            self.seconds[name] += taken
            self.counts[name] = self.counts.get(name, 0) + shown.done
            if self._around:
                self.seconds[self._around[-1]] -= taken

    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self.start
