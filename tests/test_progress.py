"""What takes long is heard of in time, on a terminal and in a log; and not at all where nobody wants to hear of it."""

import importlib
import io
import os
import re
import sys
import threading
import time

import pytest
from conftest import call

from template import progress


class Clock:
    """A clock that goes on when somebody waits for it."""

    def __init__(self, monkeypatch, lasts: float) -> None:
        self.now, self.end = 100.0, 100.0 + lasts
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(progress, "_written", [self.now])

    def wait(self, seconds: float) -> bool:
        """As `threading.Event` does: whether the step ended within so many seconds."""
        self.now += seconds
        return self.now >= self.end


class Times(io.StringIO):
    """A stream that knows when each line came."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.times = clock, []

    def write(self, text: str) -> int:
        self.times += [self.clock.now] * text.count("\n")
        return super().write(text)


@pytest.fixture
def eager(monkeypatch):
    """A log hears of everything at once."""
    monkeypatch.setattr(progress, "EVERY", 0.001)


def test_a_thing_that_takes_12_s_is_heard_of_at_least_every_5(monkeypatch):
    clock = Clock(monkeypatch, lasts=12)
    out = Times(clock)
    monkeypatch.setattr(progress, "_steps", [progress.Step("features", 20)])
    progress.write_lines(out, clock)
    heard = [100.0, *out.times, clock.end]
    assert max(later - before for before, later in zip(heard, heard[1:], strict=False)) <= 5
    assert out.getvalue().splitlines()[-1] == "  features: 0 of 20 images, 9 s"


def test_many_short_steps_are_heard_of_too(monkeypatch):
    clock = Clock(monkeypatch, lasts=0)
    out, begun = Times(clock), clock.now
    monkeypatch.setattr(progress, "_steps", [progress.Step("training")])
    for _ in range(8):
        clock.end = clock.now + 2
        progress.write_lines(out, clock)
        clock.now = clock.end
    heard = [begun, *out.times, clock.now]
    assert max(later - before for before, later in zip(heard, heard[1:], strict=False)) <= 5


def test_what_is_printed_meanwhile_counts_as_heard_of(monkeypatch, capsys):
    clock = Clock(monkeypatch, lasts=5)
    out = Times(clock)
    monkeypatch.setattr(progress, "_steps", [progress.Step("training")])
    clock.now += 2.9
    progress.print_line("epoch 1")
    progress.write_lines(out, clock)
    assert capsys.readouterr().out == "epoch 1\n" and out.getvalue() == ""


def test_a_line_says_rate_and_time_left(monkeypatch):
    clock = Clock(monkeypatch, lasts=0)
    step = progress.Step("decoding", 1000)
    assert str(step) == "decoding: 0 of 1,000 images, 0 s"
    step.advance(320)
    clock.now += 5
    assert str(step) == "decoding: 320 of 1,000 images, 64 images/s, 11 s left"
    step.advance(-315)
    assert str(step) == "decoding: 5 of 1,000 images, 1.0 images/s, 17 min left"
    run = progress.Step("run")
    monkeypatch.setattr(progress, "_steps", [run, step])
    clock.now += 20
    assert str(run) == "run, 20 s"
    progress.expect(lambda: None if clock.now < run.begun + 40 else 80.0)
    assert str(run) == "run, 20 s", "as long as nobody knows"
    clock.now += 20
    assert str(run) == "run, 40 s, about 60 s left"
    clock.now += 70
    assert str(run) == "run, 110 s (100 s were forecast)"
    counted = progress.Step("linear probe", unit="fits")
    clock.now += 2
    assert str(counted) == "linear probe, 2 s"
    counted.advance(15)
    assert str(counted) == "linear probe: 15 fits, 2 s"


def until(text: str, out: io.StringIO) -> None:
    """Wait for what another thread writes."""
    while text not in out.getvalue():
        time.sleep(0.001)


def test_a_log_gets_lines_and_each_names_what_is_around(monkeypatch, eager):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    clock, threads = progress.Timer(), threading.active_count()
    with clock("depth"):
        for item in progress.track("abc", "training", 3, "steps"):
            if item == "c":
                until("| training: 2 of 3 steps", sys.stderr)
    lines = sys.stderr.getvalue().splitlines()
    assert any(
        re.fullmatch(r"  depth, 0 s \| training: 2 of 3 steps, [\d.,]+ steps/s, 0 s left", line) for line in lines
    )
    assert "\r" not in sys.stderr.getvalue() and "\x1b" not in sys.stderr.getvalue()
    assert not progress._steps and threading.active_count() == threads


def test_a_terminal_gets_one_line_that_changes_and_goes(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    out = sys.stderr
    with progress.step("decoding", 8) as step:
        step.advance(3)
        until("3 of 8 images", out)
    said = out.getvalue()
    assert "\x1b[2K" in said and "\n  decoding" not in said, "the line is not replaced"
    assert said.rindex("\x1b[2K") > said.rindex("of 8 images"), "the last one stays"


def test_what_is_taken_from_stderr_later_does_not_take_the_lines(eager, capfd):
    """As the import of TensorFlow does, which writes past sys.stderr."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream, os.fdopen(read) as pipe, pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        patched.setattr(sys, "__stderr__", stream)
        with progress.step("importing"):
            hidden = os.open(os.devnull, os.O_WRONLY)
            os.dup2(hidden, write)
            os.close(hidden)
            assert pipe.readline().startswith("  importing")


def test_nothing_is_printed_without_messages_but_warnings(eager, capsys):
    with progress.without_messages():
        print("epoch 1")
        for _ in progress.track(range(3), "training"):
            print("warning: odd", file=sys.stderr)
    with progress.without_messages(False):
        print("result")
    said = capsys.readouterr()
    assert said.out == "result\n" and said.err == "warning: odd\n" * 3


def test_steps_of_other_threads_are_not_shown(eager, capsys):
    def work() -> None:
        with progress.step("beside"):
            assert not progress._steps

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert capsys.readouterr().err == ""


def test_a_step_that_fails_is_over(eager):
    with pytest.raises(ValueError, match="odd"), progress.step("training"):
        raise ValueError("odd")
    assert not progress._steps


@pytest.mark.parametrize(
    ("script", "work"), [("train", "recipe.run"), ("cross_validate", "search.cross_validate.cross_validate")]
)
def test_quiet_prints_warnings_and_the_result_only(monkeypatch, eager, class_folder, tmp_path, script, work):
    def fake(config, folder, *_) -> dict:
        print("epoch 1")
        print("warning: odd", file=sys.stderr)
        with progress.step("training"):
            time.sleep(0.01)
        found = {"accuracy": {"value": 0.9, "low": 0.8, "high": 1.0}, "images": 7, "each": [0.9, 0.9]}
        return found | {"test": found, "val": found}

    importlib.import_module(f"template.{work.rpartition('.')[0]}")
    monkeypatch.setattr(f"template.{work}", fake)
    line = [f"--data.path={class_folder}", "--runs", tmp_path / "runs", f"--data.cache={tmp_path / 'cache'}"]
    errors = io.StringIO()
    code, said = call(script, *line, "--quiet", errors=errors)
    assert code == 0 and errors.getvalue() == "warning: odd\n"
    first, *rest = said.strip().splitlines()
    assert "accuracy" in first and [row.split(":")[0] for row in rest] in (["report", "predict"], ["report"])
    errors = io.StringIO()
    code, loud = call(script, *line, errors=errors)
    assert "epoch 1" in loud and "training, 0 s" in errors.getvalue()
