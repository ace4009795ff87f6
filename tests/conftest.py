"""Images for the tests, all of them generated, and scripts called as a person calls them."""

import contextlib
import dataclasses
import gc
import io
import os
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ["KERAS_BACKEND"] = "tensorflow"  # before a test imports Keras
gc.set_threshold(20_000, 20, 10)  # tests make many small objects, and little garbage in cycles
ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
BENCHMARKS = ROOT / "benchmarks"


HEAVIEST = ("recipe", "scripts", "stages", "build", "auto", "journey", "backbones", "resume", "audit", "layers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The modules that take longest come first: the last ones are short, and two workers end at the same time."""
    order = {f"test_{name}": place for place, name in enumerate(HEAVIEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish() -> None:
    """What is imported by now stays: to search it for garbage again and again takes a tenth of the tests' time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_fsync():
    """Files of tests need not survive a power cut; to wait for the disk takes a tenth of a short run."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda file: None)
        yield


def call(
    script: str, *arguments, until: str | None = None, errors: io.StringIO | None = None
) -> tuple[int | str | None, str]:
    """A script in this process, where TensorFlow is imported already: its exit code or last words, and its output.

    Anything but a planned exit is an exception here, as it would be a traceback there. When it prints what matches
    `until`, somebody presses Ctrl-C. What goes to stderr is among the output, or apart in `errors`.
    """

    class Terminal(io.StringIO):
        def write(self, text: str) -> int:
            nonlocal until
            super().write(text)
            if until and re.search(until, text):
                until = None
                raise KeyboardInterrupt
            return len(text)

    path, code = (BENCHMARKS if script == "accuracy" else SCRIPTS) / f"{script}.py", 0
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(Terminal()) as said:
        patched.setattr(sys, "argv", [str(path), *map(str, arguments)])
        with contextlib.redirect_stderr(said if errors is None else errors):
            try:
                runpy.run_path(str(path), run_name="__main__")
            except SystemExit as end:
                code = end.code
    return code, said.getvalue()


def without_progress(text: str) -> str:
    """What was written to stderr but for lines on how far something is, which come where it takes long."""
    return re.sub(r"^  .*, \d+ (s|min)( left)?\n", "", text, flags=re.MULTILINE)


@contextlib.contextmanager
def without_plots():
    """Runs draw nothing: for where nobody looks at it."""
    from template.evaluate import plots

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plots, "save", lambda *_: None)
        patched.setattr(plots, "svg", lambda *_: "")
        yield


def image(kind: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """A noisy image of stripes or of a disc: easy to tell apart, and no two are equal. uint8 [size, size, 3]."""
    y, x = np.mgrid[:size, :size]
    shift = rng.integers(0, 8)
    shape = {
        "across": (y + shift) % 8 < 4,
        "disc": np.hypot(x - size / 2, y - size / 2) < size / 4 + shift / 4,
        "upright": (x + shift) % 8 < 4,
    }[kind]
    dark, bright = rng.integers(20, 90, 3), rng.integers(160, 230, 3)
    noise = rng.normal(0, 8, (size, size, 3))
    return np.clip(np.where(shape[..., None], bright, dark) + noise, 0, 255).astype(np.uint8)


def class_folders(root: Path, each: int = 12, size: int = 32, seed: int = 0) -> Path:
    """Write folders of class folders `across`, `disc` and `upright` with small PNG files, and return their root."""
    rng = np.random.default_rng(seed)
    for kind in ("across", "disc", "upright"):
        (root / kind).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(image(kind, rng, size)).save(root / kind / f"{number:02d}.png")
    return root


@pytest.fixture
def make_folder(tmp_path):
    """Makes `class_folders` below the test's own folder."""

    def make(name: str = "images", **how) -> Path:
        return class_folders(tmp_path / name, **how)

    return make


@pytest.fixture
def class_folder(make_folder) -> Path:
    """Three classes of twelve images each."""
    return make_folder()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of sample data and weights beside the repository; it is not part of it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the sample data and weights in ../shared, which is not there")
    return folder


@pytest.fixture
def eagerly():
    """Functions run as they are written: to trace them takes longer than a few steps of training."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def shallow():
    """Makes `tiny` a network of one convolution a block, for tests of what is done with a network, whatever it is.

    Most of their time is the tracing of its layers, not their arithmetic.
    """
    import keras
    from keras import layers

    from template.model.backbones import BACKBONES

    def network(*, input_tensor: keras.KerasTensor, **_) -> keras.Model:
        x = layers.Conv2D(32, 3, padding="same", use_bias=False, name="stem")(input_tensor)
        for block, width in enumerate((32, 48, 64), start=1):
            name, stride = f"block{block}_", 1 if block == 1 else 2
            y = layers.BatchNormalization(momentum=0.9, name=name + "bn1")(x)
            y = layers.Activation("relu", name=name + "relu1")(y)
            if stride > 1:
                x = layers.Conv2D(width, 1, strides=stride, use_bias=False, name=name + "shortcut")(y)
            y = layers.Conv2D(width, 3, strides=stride, padding="same", use_bias=False, name=name + "conv1")(y)
            x = layers.Add(name=name + "add")([x, y])
        x = layers.BatchNormalization(momentum=0.9, name="top_bn")(x)
        return keras.Model(keras.utils.get_source_inputs(x), layers.Activation("relu", name="top_relu")(x))

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(BACKBONES, "tiny", dataclasses.replace(BACKBONES["tiny"], build=network))
        yield
