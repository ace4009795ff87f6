"""A run on disk: a folder of its own, files that are whole or absent, and a record of what made them."""

import contextlib
import errno
import io
import json
import os
import platform
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from . import device, disk, progress, system

BEFORE_TRAINING = {
    ".lock", "config.toml", "begun.toml", "choices.json", "split.csv", "classes.json", "skipped.json", "run.json",
    "audit.json", "folds.json", "unlabelled.csv", "unlabelled_skipped.json",
}  # fmt: skip
"""What a run has written by the time it trains; all of it would be written again."""

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udc7f\udd00-\udfff]")  # without bytes of names


def new_folder(root: Path, name: str) -> Path:
    """Make `root/<date>-<time>-<name>`, which did not exist before.

    Raises:
        OSError: if it cannot be made, or its name is not in UTF-8, in which recipes and TensorFlow write it.
    """
    if legible(str(root)) != str(root):
        raise OSError(errno.EILSEQ, "its name is not UTF-8, or has control characters", str(root))
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for attempt in range(100):
        folder = root / (f"{stamp}-{name}" + (f"-{attempt}" if attempt else ""))
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise FileExistsError(f"100 runs were started in {str(root)!r} in this second.")


def discard(folder: Path) -> bool:
    """Remove the folder of a run that was refused before it trained, if it holds nothing but what such a run wrote.

    Returns:
        Whether it is gone.
    """
    if {path.name for path in folder.iterdir()} - BEFORE_TRAINING:
        return False
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return True


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file through a temporary name: afterwards `path` is the old file or the new one, never a part of it.

    Yields:
        The temporary path (same ending), to be written and closed inside the block. Its folder is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = disk.temporary_name(path)
    try:
        yield temporary
        system.sync(temporary)
        system.patiently(temporary.replace, path)
        system.sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def legible(text: str) -> str:
    r"""Text that every table, page and terminal takes: what is not, is spelled out (`caf\xe9`, `\x1b[31m`).

    That are the bytes of file names that are not UTF-8, and control characters but for tabs and line ends.
    """

    def spelled(text: str) -> str:
        return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)

    return spelled(spelled(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))


def short(name: str, most: int = 100) -> str:
    """The beginning of a file's name, legible and in so many bytes at most: file systems take 255, some 143."""
    beginning = " ".join(legible(name).split()).encode()[:most].decode("utf-8", "ignore")
    return os.fsdecode(beginning.encode())  # which is another text only where the system's encoding lacks letters


def check_output(path: Path, kind: Literal["file", "folder"], option: str = "--out") -> None:
    """Of a script, before its work: leave with a message and exit code 2 unless this can be written afterwards."""
    try:
        disk.require_writable(path, kind, option)
    except disk.DiskError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def script() -> Iterator[None]:
    r"""What every script does beside its work: the decorator of its `main`.

    It prints what the terminal's encoding lacks spelled out (`\u732b`), for an error in mid-run would end it; and line
    by line, into a log as well: what is said now is of use now. A file of a run that is not whole ends it with a
    message and exit code 1. If what reads its output is gone (`| head`), it ends as other programs do: silent, with
    128 + SIGPIPE.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        yield
    except disk.DamagedError as error:
        sys.exit(str(error))
    except BrokenPipeError:
        try:
            print(flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python says so when it flushes
            sys.exit(141)
        raise  # of another pipe


def write_text(path: Path, text: str) -> None:
    """Write a whole text file or nothing; in UTF-8, with what that lacks spelled out."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write a whole JSON file or nothing. NaN is an error: other programs cannot read it."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file written by `write_json`.

    Raises:
        DamagedError: if it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise disk.DamagedError(f"{str(path)!r} is damaged: {error}. Copy it again from where it is whole.") from error


@contextlib.contextmanager
def graceful_stop(message: str, seconds: float = 8.0) -> Iterator[None]:
    """Within the block, Ctrl-C and SIGTERM print a message and end the process with 130 or 143, in so many seconds.

    The first signal unwinds what is being done, so that half-written files are removed. If that takes too long, or at
    the second signal, the process just ends: what is written by rename is whole at any instant.
    """

    def end(number: int, frame: object) -> None:
        if not asked:
            os.write(2, f"\n{message}\n".encode())  # a signal may come in the middle of a print
            clock = threading.Timer(seconds, os._exit, [128 + number])
            clock.daemon = True
            clock.start()
        else:
            os._exit(128 + number)
        asked.append(number)
        raise KeyboardInterrupt

    asked: list[int] = []
    handled = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, before in handled.items():
        if before != signal.SIG_IGN:  # as the shell wants it for what it starts in the background
            signal.signal(number, end)
    try:
        yield
    except KeyboardInterrupt:
        if not asked:
            print(f"\n{message}", file=sys.stderr)
        raise SystemExit(128 + asked[0] if asked else 128 + signal.SIGINT) from None
    finally:
        for number, before in handled.items():
            signal.signal(number, before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within the block nothing reaches stderr, from C++ neither; if it fails, all that was written is shown."""
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as printed:  # the lines come from C++ and pass by sys.stderr
        try:
            os.dup2(printed.fileno(), 2)
            yield
        except BaseException:
            printed.seek(0)
            os.write(stderr, printed.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def import_tensorflow() -> None:
    """Import TensorFlow without the dozen lines that it writes about itself; what it writes if it fails is shown."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with progress.step("importing TensorFlow"), quiet():
        settle_keras()
        import tensorflow

        tensorflow.get_logger().setLevel("ERROR")  # each stage compiles a network of its own, and it minds that
        device.share_gpus()


def keras_home() -> Path:
    """Folder in which Keras keeps keras.json, and the weights that it has downloaded in models/."""
    return Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))


def settle_keras() -> None:
    """Import Keras with the settings that this project is written for, whatever other projects have set.

    They come from ~/.keras/keras.json and the environment, and would be obeyed without a word: images with channels
    first, layers in float16, no more than one epoch.

    Raises:
        ImportError: if Keras has been imported with another backend, or does not accept its own keras.json.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    try:
        import keras
    except ValueError as error:
        file = keras_home() / "keras.json"
        raise ImportError(
            f"Keras does not accept the settings in {str(file)!r}; correct or delete it: {error}"
        ) from error
    if keras.config.backend() != "tensorflow":
        raise ImportError(
            f"This project needs Keras with the backend tensorflow, but Keras has been imported with "
            f"{keras.config.backend()} (KERAS_BACKEND or keras.json). Set KERAS_BACKEND=tensorflow, or call "
            "template.runs.import_tensorflow() before Keras is imported."
        )
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")
    keras.config.set_max_epochs(None)
    keras.config.set_max_steps_per_epoch(None)


def environment() -> dict[str, Any]:
    """Versions and hardware that a result depends on."""
    packages = ("tensorflow", "keras", "scikit-learn", "numpy", "pillow", "opencv-python-headless")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": device.cores(),
    }


def peak_memory_gb() -> float | None:
    """Most memory that this process has held so far, in GiB; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
