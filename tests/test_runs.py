"""A run's files are whole or as they were before, its folder is its own, and its clock does not lose time."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from template import progress, runs


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_that_never_trained_leaves_nothing_and_anything_else_stays(tmp_path):
    for name in sorted(runs.BEFORE_TRAINING):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).touch()
    for foreign in ("checkpoints", "notes.txt", "model.keras", ".hidden"):
        (tmp_path / "run" / foreign).touch()
        before = names(tmp_path / "run")
        assert not runs.discard(tmp_path / "run") and names(tmp_path / "run") == before
        (tmp_path / "run" / foreign).unlink()
    (tmp_path / "beside").touch()
    assert runs.discard(tmp_path / "run") and names(tmp_path) == ["beside"]


def test_replacing_writes_the_new_file_and_nothing_else(tmp_path):
    target = tmp_path / "model.keras"
    target.write_text("old")
    with runs.replacing(target) as temporary:
        assert temporary.suffix == ".keras", "Keras chooses the format by the ending"
        temporary.write_text("new")
        assert target.read_text() == "old", "until the block ends, others see the old file"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["model.keras"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("old", ["old", None])
def test_a_failure_inside_the_block_changes_nothing(tmp_path, old, error):
    target = tmp_path / "report.md"
    if old:
        target.write_text(old)
    with pytest.raises(error), runs.replacing(target) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert names(tmp_path) == (["report.md"] if old else [])
    assert not old or target.read_text() == old


def test_a_block_that_wrote_nothing_is_an_error_and_keeps_the_old_file(tmp_path):
    runs.write_text(tmp_path / "report.md", "old")
    with pytest.raises(FileNotFoundError), runs.replacing(tmp_path / "report.md"):
        pass
    assert (tmp_path / "report.md").read_text() == "old"


def test_the_new_contents_are_on_disk_before_they_get_the_name(tmp_path, monkeypatch):
    # Otherwise a power cut can leave the new name with no contents.
    happened = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (happened.append("fsync"), fsync(file)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (happened.append("rename"), replace(self, to))[1])
    runs.write_text(tmp_path / "a.txt", "a")
    assert happened[:2] == ["fsync", "rename"]


def test_text_is_utf8_everywhere(tmp_path):
    runs.write_text(tmp_path / "a.txt", "Käfer 犬\n")
    assert (tmp_path / "a.txt").read_bytes() == "Käfer 犬\n".encode()


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("caf\xe9 \u732b \U0001f98a a\tb\n", "caf\xe9 \u732b \U0001f98a a\tb\n"),
        ("caf\udce9", "caf\\xe9"),
        ("\udcc3\udca9", "\xe9"),  # what an ASCII system makes of a name in UTF-8
        ("\x1b[31mred\x07\x00\x9b", "\\x1b[31mred\\x07\\x00\\x9b"),
        ("lone \ud83d", "lone \\ud83d"),
    ],
)
def test_any_name_becomes_text_that_tables_pages_and_terminals_take(tmp_path, text, plain):
    assert runs.legible(text) == plain
    assert runs.legible(plain) == plain
    runs.write_text(tmp_path / "x.txt", text)
    runs.write_json(tmp_path / "x.json", [text])
    assert runs.read_json(tmp_path / "x.json") == [text]


def test_no_run_is_begun_where_its_name_cannot_be_written(tmp_path):
    with pytest.raises(OSError, match="not UTF-8"):
        runs.new_folder(tmp_path / "caf\udce9", "x")
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_of_ascii_shows_every_name(tmp_path):
    code = "from template import runs\nwith runs.script(): print('caf\\xe9 \\u732b \\udce9 \\U0001f98a')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "caf\\xe9 \\u732b \\udce9 \\U0001f98a\n"


def test_a_script_whose_output_nobody_reads_any_more_ends_silently():
    code = (
        "import sys\nfrom template import runs\nwith runs.script():\n    sys.stdin.read()\n    print(1)\n    print(2)"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as script:
        script.stdout.close()
        script.stdin.close()
        assert (script.stderr.read(), script.wait()) == (b"", 141)


def test_a_broken_pipe_that_is_not_the_output_is_an_error(capsys):
    with pytest.raises(BrokenPipeError, match="a worker's"), runs.script():
        raise BrokenPipeError("a worker's")


def test_json_comes_back_equal(tmp_path):
    value = {"name": "Käfer", "low": 0.1 + 0.2, "none": None, "list": [1, True, "x"]}
    runs.write_json(tmp_path / "a.json", value)
    assert runs.read_json(tmp_path / "a.json") == value
    assert "Käfer" in (tmp_path / "a.json").read_text(encoding="utf-8"), "for people too"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_what_other_programs_cannot_read(tmp_path, bad):
    runs.write_json(tmp_path / "metrics.json", {"f1": 0.5})
    with pytest.raises(ValueError):
        runs.write_json(tmp_path / "metrics.json", {"classes": {"a": {"f1": bad}}})
    assert runs.read_json(tmp_path / "metrics.json") == {"f1": 0.5}
    assert names(tmp_path) == ["metrics.json"]


def test_new_folder_is_never_one_that_was_there(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-120000")  # all in the same second
    (tmp_path / "20260101-120000-tiny").write_text("a file may have the name too")
    folders = [runs.new_folder(tmp_path, "tiny") for _ in range(99)]
    assert len(set(folders)) == 99
    assert all(folder.is_dir() and not names(folder) and folder.parent == tmp_path for folder in folders)
    with pytest.raises(FileExistsError, match="100 runs"):
        runs.new_folder(tmp_path, "tiny")


def test_new_folder_makes_its_parents_and_says_when_and_what(tmp_path):
    before = time.strftime("%Y%m%d-%H%M%S")
    folder = runs.new_folder(tmp_path / "a" / "b", "vgg16")
    assert folder.parent == tmp_path / "a" / "b"
    assert before <= folder.name[:15] <= time.strftime("%Y%m%d-%H%M%S")
    assert folder.name[15:] == "-vgg16"


def test_clock_adds_up_under_each_name(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = progress.Timer()
    for name, seconds in [("decode", 2.0), ("training", 10.0), ("decode", 3.0)]:
        with clock(name) as step:
            now += seconds
            step.advance(20)
        now += 1  # between the blocks: in the total alone
    with pytest.raises(RuntimeError), clock("training"):
        now += 5
        raise RuntimeError("the time was spent all the same")
    assert clock.seconds == {"decode": 5.0, "training": 15.0}
    assert clock.counts == {"decode": 40, "training": 20}
    assert clock.total() == 23.0


@pytest.fixture
def wait(monkeypatch):
    """Lets seconds pass on the clock of this process."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


def test_the_seconds_of_an_inner_block_are_not_those_of_the_block_around_it(wait):
    clock = progress.Timer()
    with clock("stage 1"):
        wait(1)
        with clock("features"):
            wait(10)
            with clock("decode"):
                wait(100)
            wait(20)
        wait(2)
        with clock("features"):
            wait(30)
    wait(1000)
    with clock("features"):
        wait(40)
    assert clock.seconds == {"stage 1": 3, "features": 100, "decode": 100}
    assert clock.total() == 1203


def test_a_block_inside_one_of_the_same_name_is_counted_once(wait):
    clock = progress.Timer()
    with clock("probe"):
        wait(1)
        with clock("probe"):
            wait(2)
        wait(4)
    assert clock.seconds == {"probe": 7}


def test_a_failure_inside_an_inner_block_loses_no_time(wait):
    clock = progress.Timer()
    with pytest.raises(RuntimeError), clock("stage 1"):
        wait(1)
        with clock("features"):
            wait(2)
            raise RuntimeError
    with clock("evaluation"):  # stands alone again
        wait(4)
    assert clock.seconds == {"stage 1": 1, "features": 2, "evaluation": 4}


def test_whatever_the_blocks_they_add_up_to_the_time_inside_the_outermost(wait):
    clock, generator, inside = progress.Timer(), random.Random(0), 0.0

    def block(depth: int) -> float:
        spent = 0.0
        with clock(generator.choice("abc")):
            for _ in range(generator.randint(0, 3 - depth)):
                seconds = generator.randint(0, 9)
                wait(seconds)
                spent += seconds + block(depth + 1)
        return spent

    for _ in range(50):
        inside += block(0)
        wait(1)
        assert sum(clock.seconds.values()) == inside <= clock.total()
        assert min(clock.seconds.values()) >= 0
    assert clock.total() == inside + 50


def test_a_block_of_another_thread_takes_no_time_from_the_blocks_of_this_one(wait):
    """With `refresh`, the threads that read ahead compute activations, perhaps beyond the end of a stage."""
    clock, begun, end = progress.Timer(), threading.Event(), threading.Event()

    def compute() -> None:
        with clock("features"):
            begun.set()
            end.wait(10)

    thread = threading.Thread(target=compute)
    with clock("stage 1"):
        wait(8)
        thread.start()
        begun.wait(10)
    with clock("evaluation"):
        wait(4)
        end.set()
        thread.join(10)
    with clock("refit"):
        wait(2)
    assert clock.seconds["stage 1"] == 8
    assert clock.seconds["refit"] == 2
    assert min(clock.seconds.values()) >= 0
    assert sum(clock.seconds.values()) <= clock.total() == 14


def test_environment_names_the_versions_that_are_installed():
    said = runs.environment()
    json.dumps(said, allow_nan=False)
    assert said["python"] == sys.version.split()[0]
    assert said["keras"] == version("keras")
    assert said["tensorflow"] == version("tensorflow")


@pytest.mark.parametrize("fails", [False, True])
def test_import_tensorflow_is_silent_unless_it_fails(tmp_path, fails):
    # A stand-in for TensorFlow that writes past sys.stderr, as its C++ part does.
    works = "from unittest.mock import MagicMock\ndef __getattr__(name): return MagicMock()\n"
    keras = "config = MagicMock()\nconfig.backend.return_value = 'tensorflow'\n"
    (tmp_path / "keras.py").write_text(f"import os\nos.write(2, b'noise about oneDNN\\n')\n{works}{keras}")
    (tmp_path / "tensorflow.py").write_text("raise ImportError('no libcuda')" if fails else works)
    code = "import sys; from template import runs; runs.import_tensorflow(); sys.stderr.write('after\\n')"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=Path(runs.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    if fails:
        assert result.returncode != 0
        assert "noise about oneDNN" in result.stderr
        assert "no libcuda" in result.stderr
    else:
        assert (result.returncode, result.stderr) == (0, "after\n")


STOPPED = """
import sys, time
from template import runs
with runs.graceful_stop("go on with: this", seconds=1):
    try:
        print("started", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("unwinding", flush=True)
        time.sleep(float(sys.argv[1]))
        raise
"""


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
@pytest.mark.parametrize(("lasts", "again"), [(0, False), (60, False), (60, True)], ids=["", "hangs", "twice"])
def test_a_signal_ends_the_process_soon_with_its_code_and_the_message(number, lasts, again):
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    line = [sys.executable, "-c", listen + STOPPED, str(lasts)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": Path(runs.__file__).parents[1]}
    with subprocess.Popen(line, **pipes) as process:
        assert process.stdout.readline() == "started\n"
        process.send_signal(number)
        if again:
            assert process.stdout.readline() == "unwinding\n"
            process.send_signal(number)
        _, said = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert said.strip() == "go on with: this"


def test_whoever_started_a_process_deaf_to_ctrl_c_keeps_it_so():
    deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    code = deaf + "from template import runs\nwith runs.graceful_stop('x'): print(signal.getsignal(signal.SIGINT).name)"
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=Path(runs.__file__).parents[1], capture_output=True, text=True, check=True)
    assert "SIG_IGN" in done.stdout


# The settings of Keras


def trained() -> np.ndarray:
    """Logits of a small network after three epochs."""
    runs.import_tensorflow()
    import keras

    from template.config import Backbone, Head
    from template.model.build import build

    keras.utils.set_random_seed(0)
    model = build(Backbone(name="tiny", weights="none"), Head(dropout=0.0), 16, [1, 1])
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True), run_eagerly=True)
    images = np.random.default_rng(0).uniform(0, 255, (8, 16, 16, 3)).astype("float32")
    model.fit(images, np.eye(2)[[0, 1] * 4], batch_size=4, epochs=3, shuffle=False, verbose=0)
    return model.predict_on_batch(images)


def elsewhere(home: Path, code: str, settings: dict, **environment: str) -> subprocess.CompletedProcess:
    """What happens in a process whose user has other settings of Keras."""
    home.mkdir()
    (home / "keras.json").write_text(json.dumps(settings))
    paths = os.pathsep.join([str(Path(runs.__file__).parents[1]), str(Path(__file__).parent)])
    environment = os.environ | {"KERAS_HOME": str(home), "PYTHONPATH": paths} | environment
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow  # trains in a process of its own
def test_what_other_projects_tell_keras_changes_nothing(tmp_path):
    theirs = {"floatx": "float16", "epsilon": 0.1, "backend": "torch", "image_data_format": "channels_first"}
    limits = {"KERAS_BACKEND": "torch", "KERAS_MAX_EPOCHS": "1", "KERAS_MAX_STEPS_PER_EPOCH": "1"}
    code = f"import numpy; from test_runs import trained; numpy.save({str(tmp_path / 'logits.npy')!r}, trained())"
    result = elsewhere(tmp_path / "keras", code, theirs, **limits)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), trained(), rtol=1e-4, atol=1e-5)


def test_a_short_name_is_one_that_a_file_can_have_where_the_system_knows_only_ascii(tmp_path):
    code = "import sys; from template import runs; open(f'{sys.argv[1]}/{runs.short(sys.argv[2])}', 'x')"
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(Path(runs.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code, tmp_path, "\u732b\xe9"], env=environment, check=True)
    (name,) = tmp_path.iterdir()
    assert os.fsencode(name.name) == "\u732b\xe9".encode()


def test_settings_that_keras_refuses_are_named_with_their_file(tmp_path):
    code = "from template import runs; runs.import_tensorflow()"
    result = elsewhere(tmp_path / "keras", code, {"floatx": "bfloat16"})
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert "keras.json'; correct or delete it" in last and "bfloat16" in last


def test_keras_that_was_imported_with_another_backend_is_refused(monkeypatch):
    import keras

    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(ImportError, match="needs Keras with the backend tensorflow, .* imported with jax"):
        runs.settle_keras()
