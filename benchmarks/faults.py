"""What survives: processes killed at random, damaged checkpoints, full disks, mixed-up labels, mutated images.

python benchmarks/faults.py kills              # 200 kill -9 of training runs; each must end as if nothing had happened
python benchmarks/faults.py damage             # single-bit flips and truncations of a checkpoint, all to be noticed
python benchmarks/faults.py writers            # a crash and an error at every step of every writer, full disks
python benchmarks/faults.py labels             # generated folders and tables: no label shifts, no image in two parts
python benchmarks/faults.py near --data FOLDER # recoded and resized copies of photographs: found, and nothing else
python benchmarks/faults.py fuzz --seconds 600 # mutated files through the loader
python benchmarks/faults.py cache              # processes that share a cache too small for them, killed at random
python benchmarks/faults.py cost --run RUN     # part of a run's seconds that went into checkpoints

Every part prints its figures as JSON, and ends with exit code 1 if something was lost. docs/reliability.md has those of
one machine; tests/test_faults.py runs each part for a few seconds.
"""

import argparse
import contextlib
import csv
import errno
import io
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from template import progress, runs
from template.config import Data
from template.data.audit.duplicates import near_pairs
from template.data.audit.facts import THUMBNAIL
from template.data.cache import Cache
from template.data.decode import decode
from template.data.examples import DataError, load_examples
from template.data.images.load import BadImageError, load_image
from template.data.split import split

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


# kills


def kills(folder: Path, number: int = 10, wanted: int = 200, workers: int = 2, seed: int = 0) -> dict:
    """Train the same runs once in peace and once under `kill -9`, resumed after each, and compare them bit for bit.

    A third of the kills fall anywhere after the start, a third while it trains, a third when a save is seen to begin.

    Args:
        folder: for images and runs.
        number: runs, at least so many, of different seeds; more if they finish before they were killed often enough.
        wanted: kills over all runs.
        workers: runs at a time.
        seed: of the moments.
    """
    images, weights = folder / "images", folder / "tiny.weights.h5"
    _write_digits(images)
    _write_weights(weights)
    results: list[dict] = []
    with ThreadPoolExecutor(workers) as pool:
        while sum(r["kills"] for r in results) < wanted:
            left = wanted - sum(r["kills"] for r in results)
            numbers = range(len(results), max(len(results) + workers, number))
            quota = -(-left // len(numbers))
            results += pool.map(lambda n, q=quota: _kill_one(folder, images, weights, n, q, seed), numbers)
    sums = {
        key: sum(r[key] for r in results)
        for key in ("kills", "during a save", "before training", "in the refit", "stopped early")
    }
    wrong = [f"run {number}: {problem}" for number, r in enumerate(results) for problem in r["problems"]]
    longest = max(r["epochs repeated"] for r in results)
    return {"runs": len(results), **sums, "most epochs repeated": longest, "wrong": wrong}


def _settings(images: Path, weights: Path, cache: Path, number: int) -> list[str]:
    """Two stages, the first on stored activations; every other run begins with a probe."""
    return [
        f"--data.path={images}", f"--data.cache={cache}", "--data.image_size=16", "--backbone.name=tiny",
        f"--backbone.weights={weights if number % 2 else 'none'}", "--augment.hflip=false", "--augment.policy=medium",
        "--head.dropout=0.3", "--train.batch_size=32", "--train.patience=4", "--train.refit_on_train_val=yes",
        f"--train.seed={number}", "--train.checkpoint_seconds=0",
        '--stages=[{unfreeze=1, epochs=8, cached_augmentations=2, refresh=2, learning_rate=3e-3}, '
        '{unfreeze="all", epochs=12, learning_rate=1e-2}]',
    ]  # fmt: skip


def _kill_one(folder: Path, images: Path, weights: Path, number: int, quota: int, seed: int) -> dict:
    """One run in peace, and the same again under fire."""
    peace, fire = folder / f"peace-{number}", folder / f"fire-{number}"
    generator = random.Random(f"{seed} {number}")
    _attempt(["--runs", peace, *_settings(images, weights, peace / "cache", number)], None, None)
    (whole,) = peace.glob("2*")
    counts = dict.fromkeys(("kills", "during a save", "before training", "in the refit", "epochs repeated"), 0)
    problems, run, reached = [], None, 0
    while True:
        line = ["--resume", run] if run else ["--runs", fire, *_settings(images, weights, fire / "cache", number)]
        moment = generator.choice(("any", "training", "save")) if counts["kills"] < quota else None
        code, output = _attempt(line, moment, generator, fire)
        run = next(fire.glob("2*"), None)
        epochs = [int(match) for match in re.findall(r"epoch +(\d+)/", output)]
        if epochs:
            counts["epochs repeated"] = max(counts["epochs repeated"], reached + 1 - epochs[0])
            reached = max(reached, epochs[-1])
        if code == -signal.SIGKILL:
            counts["kills"] += 1
            counts["during a save"] += any(fire.glob("2*/checkpoints/.tmp-*")) or any(fire.glob("2*/final/.tmp-*"))
            counts["before training"] += "stage 1" not in output and "stage 2" not in output
            counts["in the refit"] += "refit on" in output
            continue
        if code:
            problems.append(f"exit code {code}: {output[-2000:]}")
        break
    problems += _differences(whole, run) if not problems else []
    with (whole / "history.csv").open(newline="") as file:
        counts["stopped early"] = len(list(csv.DictReader(file))) < 20
    return counts | {"problems": problems}


def _attempt(
    line: list, moment: str | None, generator: random.Random | None, fire: Path | None = None
) -> tuple[int, str]:
    """Run train.py, perhaps killed at a moment of this kind: exit code and what was printed."""
    output: list[str] = []
    command = [sys.executable, str(SCRIPTS / "train.py"), *map(str, line)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        reader = threading.Thread(target=lambda: output.extend(process.stdout))
        reader.start()
        if moment == "any":
            _wait(process, lambda: False, generator.uniform(0, 12))
        elif moment:
            _wait(process, lambda: any(re.match(r"stage|again", text) for text in output), 600)
            if moment == "training":
                _wait(process, lambda: False, generator.uniform(0, 4))
            else:
                for _ in range(generator.randint(1, 3)):  # not always the first save
                    _wait(process, lambda: not _saving(fire), 600)
                    _wait(process, lambda: _saving(fire), 600)
                _wait(process, lambda: False, generator.uniform(0, 0.02))
        if moment:
            process.kill()
        reader.join()
    return process.returncode, "".join(output)


def _saving(fire: Path) -> bool:
    return any(fire.glob("2*/checkpoints/.tmp-*/arrays.npz")) or any(fire.glob("2*/final/.tmp-*/arrays.npz"))


def _wait(process: subprocess.Popen, until: Callable[[], bool], seconds: float) -> None:
    """Until something is so, the process has ended, or the seconds are over."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end and not until():
        time.sleep(0.0005 if end - time.monotonic() < 0.1 or seconds > 100 else 0.01)


def _differences(one: Path, other: Path) -> list[str]:
    """What is not equal to the last bit in two runs: weights, best weights, optimizer, history, predictions."""
    found = []
    if (
        json.loads((one / "model.json").read_text())["weights"]
        != json.loads((other / "model.json").read_text())["weights"]
    ):
        found.append("final weights differ")
    for kind in ("checkpoints", "final"):
        a, b = (max((run / kind).glob("[0-9]*"), default=None) for run in (one, other))
        if (a and a.name) != (b and b.name) or (a and not _same_arrays(a / "arrays.npz", b / "arrays.npz")):
            found.append(f"{kind} differ (best weights, optimizer, random generators)")
    if not _same_arrays(one / "predictions.npz", other / "predictions.npz"):
        found.append("predictions differ")
    histories = []
    for run in (one, other):
        with (run / "history.csv").open(newline="") as file:
            histories.append([{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)])
    return found + (["history differs"] if histories[0] != histories[1] else [])


def _same_arrays(one: Path, other: Path) -> bool:
    with np.load(one, allow_pickle=False) as a, np.load(other, allow_pickle=False) as b:
        return a.files == b.files and all(a[n].tobytes() == b[n].tobytes() for n in a.files)


def _write_digits(folder: Path, each: int = 24) -> None:
    """Handwritten digits as PNG files in class folders."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in range(10):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        for number, row in enumerate(np.flatnonzero(digits.target == label)[:each]):
            Image.fromarray((digits.images[row] * (255 / 16)).astype(np.uint8)).save(folder / f"{label}/{number}.png")


def _write_weights(file: Path) -> None:
    """Random weights of `tiny`, which count as pretrained ones, written by a process of its own."""
    code = (
        "import sys; from template import runs; runs.import_tensorflow(); import keras; "
        "from template.config import Backbone; from template.model.backbones import build_backbone; "
        "keras.utils.set_random_seed(0); "
        "build_backbone(Backbone(name='tiny', weights='none'), 16).save_weights(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(file)], check=True)


# damage


def damage(folder: Path, flips: int = 200, cuts: int = 10, seed: int = 0) -> dict:
    """Flip single bits and cut files short, in the newest of two checkpoints and in a saved model: all to be noticed.

    Of a damaged checkpoint the older one must be read; of two, none. The file is drawn first, then the bit, so that the
    small ones (state, manifest) are hit as often as the large one.
    """
    from template.deploy.predictor import load_run
    from template.train.checkpoint import read_checkpoint

    generator = random.Random(seed)
    _write_run(folder)
    newest = folder / "checkpoints" / "00002"
    model = [folder / name for name in ("model.keras", "model.json")]

    def falls_back() -> bool:
        return read_checkpoint(folder / "checkpoints")[0].epoch == 1

    def refuses() -> bool:
        try:
            load_run(folder)
        except ValueError:  # DataError is one
            return True
        return False

    results = {}
    with contextlib.redirect_stderr(io.StringIO()) as output:
        assert read_checkpoint(folder / "checkpoints")[0].epoch == 2 and not refuses(), "whole to begin with"
        for what, files, notices in (("checkpoint", sorted(newest.iterdir()), falls_back), ("model", model, refuses)):
            for how, number in (("bit flips", flips), ("truncations", cuts)):
                noticed = sum(_damaged(generator.choice(files), how, generator, notices) for _ in range(number))
                results[f"{what}, {how}"] = {"made": number, "noticed": noticed}
        (folder / "checkpoints" / "00001" / "state.json").write_text("")
        (newest / "state.json").write_text("")
        before = sorted(folder.rglob("*"))
        try:
            read_checkpoint(folder / "checkpoints")
            stops = False
        except ValueError:
            stops = sorted(folder.rglob("*")) == before
    wrong = [f"{name}: {r}" for name, r in results.items() if r["made"] != r["noticed"]]
    wrong += [] if stops else ["two damaged checkpoints do not stop the run, or something was deleted"]
    wrong += [] if "is damaged" in output.getvalue() else ["nothing was output"]
    return results | {"both damaged": "stops, deletes nothing" if stops else "goes on", "wrong": wrong}


def _damaged(file: Path, how: str, generator: random.Random, notices: Callable[[], bool]) -> bool:
    """Whether damage to a file is noticed; the file is mended afterwards."""
    whole = file.read_bytes()
    data = bytearray(whole)
    if how == "truncations":
        del data[generator.randrange(len(data)) :]
    else:
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    file.write_bytes(data)
    try:
        return notices()
    finally:
        file.write_bytes(whole)


def _write_run(folder: Path) -> None:
    """Two checkpoints and a saved model of an untrained network."""
    from template.config import Backbone, Config, Data, Head, to_toml
    from template.deploy.predictor import save_model
    from template.model.build import build

    config = Config(data=Data(image_size=16), backbone=Backbone(name="tiny", weights="none"))
    model = build(config.backbone, Head(), 16, [1, 1])
    for epoch in (1, 2):
        _save_checkpoint(folder / "checkpoints", model, epoch)
    runs.write_text(folder / "config.toml", to_toml(config))
    runs.write_json(folder / "classes.json", ["a", "b"])
    save_model(model, folder)


def _save_checkpoint(folder: Path, model: Any, epoch: int) -> None:
    from template.train.checkpoint import Checkpoint, TrainState

    if not getattr(model, "optimizer", None):
        model.compile("adam", "categorical_crossentropy")
        model.optimizer.build(model.trainable_variables)
    base = {"begun": [variable.numpy() for variable in model.variables], "before": model.get_weights()}
    checkpoint = Checkpoint(TrainState(), folder, model, base, progress.Timer())
    checkpoint.set_model(model)
    checkpoint.on_epoch_end(epoch - 1)


# writers


@dataclass(frozen=True)
class Artifact:
    """Something that is written: version 0, then version 1; `read` says which is there, and raises if neither is."""

    write: Callable[[Path, int], None]
    read: Callable[[Path], int]


def writers(folder: Path, artifacts: dict[str, Artifact] | None = None) -> dict:
    """A crash and an error at every step of writing, and disks that fill up: the old or the new file, complete.

    A crash is what lies on the disk at that instant, copied; where a file was just opened to be written, it lies there
    empty. An error is raised by the system call: no space left. A
    disk that fills up is a limit on the size of files, at nothing, half and all but one byte of what is to be written.
    """
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked.append(True)
    results, wrong = {}, []
    for name, artifact in (artifacts or _artifacts(folder / "scratch")).items():
        counts = {"crashes": 0, "errors": 0, "full disks": 0}
        for how, place in _disturbances(artifact, folder / name):
            counts[how] += 1
            try:
                version = artifact.read(place)
            except Exception as error:  # whatever it is, a user has lost the file
                version = f"{type(error).__name__}: {error}"
            if version not in (0, 1):
                wrong.append(f"{name}, {how} {counts[how]}: {version}")
            if how != "crashes" and list(place.rglob(".tmp-*")):
                wrong.append(f"{name}, {how} {counts[how]}: something half written was left")
            shutil.rmtree(place)
        results[name] = counts
    return {"steps": results, "wrong": wrong}


def _disturbances(artifact: Artifact, folder: Path) -> Iterator[tuple[str, Path]]:
    """Folders in which version 1 was written over version 0, and that was interrupted: (how, folder)."""

    def fresh(name: str) -> Path:
        artifact.write(folder / name, 0)
        return folder / name

    place, copies = fresh("crashes"), []

    def copy(opened: str) -> None:
        copies.append(folder / f"crash-{len(copies)}")
        shutil.copytree(place, copies[-1])
        if opened:
            copies.append(folder / f"crash-{len(copies)}")
            shutil.copytree(place, copies[-1])
            (copies[-1] / Path(opened).relative_to(place)).write_bytes(b"")

    with _every_step(place, copy):
        artifact.write(place, 1)
    assert artifact.read(place) == 1, "undisturbed"
    yield from (("crashes", copied) for copied in copies)
    for step in range(len(copies)):
        place = fresh(f"error-{step}")
        left = iter(range(step, -1, -1))

        def fail(_: str, left: Iterator[int] = left) -> None:
            if next(left, None) == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with contextlib.suppress(OSError), _every_step(place, fail):
            artifact.write(place, 1)
        yield "errors", place
    size = max(file.stat().st_size for file in folder.glob("crashes/**/*") if file.is_file())
    for limit in (0, size // 2, size - 1):
        place = fresh(f"full-{limit}")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            with contextlib.suppress(Exception):
                artifact.write(place, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        yield "full disks", place


_hooked: list[bool] = []
_listening: list[Callable[[str, tuple], None]] = []
"""Who is told of every system call now; Python's audit hooks stay for ever, so there is only one."""


def _audit(event: str, arguments: tuple) -> None:
    for listener in _listening:
        listener(event, arguments)


@contextlib.contextmanager
def _every_step(folder: Path, action: Callable[[str], None]) -> Iterator[None]:
    """Call `action` before every opening, renaming, deleting and syncing below a folder, and once afterwards.

    Its argument is the file that is about to be opened for writing, or "".
    """
    fsync, inside = os.fsync, False

    def step(opened: str = "") -> None:
        nonlocal inside
        if not inside:  # the action opens files too
            inside = True
            try:
                action(opened)
            finally:
                inside = False

    def listen(event: str, arguments: tuple) -> None:
        watched = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}
        if event in watched and str(arguments[0]).startswith(str(folder)):
            writes = event == "open" and set("wx") & set(arguments[1] or "") and not Path(arguments[0]).is_dir()
            step(str(arguments[0]) if writes else "")

    def sync(handle: int) -> None:
        step()
        fsync(handle)

    _listening.append(listen)
    os.fsync = sync
    try:
        yield
        step()
    finally:
        os.fsync = fsync
        _listening.clear()


def _artifacts(scratch: Path) -> dict[str, Artifact]:
    """Every kind of thing that a run writes, by the code that a run writes it with."""
    import keras

    from template.config import Data
    from template.data.dataset import ArrayDataset
    from template.data.decode import decode
    from template.data.examples import Examples
    from template.evaluate import plots
    from template.evaluate.predictions import Predictions
    from template.train.checkpoint import read_checkpoint
    from template.train.features import FeatureCache

    def predictions(version: int) -> Predictions:
        return Predictions(np.array(["a"]), np.zeros(1, np.int64), np.full((1, 2), version, np.float32), ("a", "b"))

    def network(value: float) -> keras.Model:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(300, use_bias=False, name="dense")])
        model.set_weights([np.full((4, 300), value)])
        return model

    def save_figure(folder: Path, version: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        plots.save(plots.confusion_matrix(np.eye(2, dtype=int) + version, ("a", "b")), folder / "figure.png")

    def read_figure(folder: Path) -> int:
        with Image.open(folder / "figure.png") as image:
            image.load()
        return int((folder / "figure.png").read_bytes() == (scratch / "1" / "figure.png").read_bytes())

    for version in (0, 1):
        save_figure(scratch / str(version), version)

    def save_model(folder: Path, version: int) -> None:
        with runs.replacing(_made(folder) / "model.keras") as file:
            network(version).save(file)

    def read_model(folder: Path) -> int:
        model = network(9)
        model.load_weights(folder / "model.keras")
        return _version(model.get_weights()[0])

    images = [np.full((20, 20, 3), n, np.uint8) for n in range(30)]
    examples = Examples(np.array([f"{n}" for n in range(30)]), images, np.zeros(30, np.int64), ("a",), np.full(30, ""))

    def read_pixels(folder: Path) -> int:
        """A cache is right or made again."""
        used, pixels = decode(examples, Data(cache=str(folder), image_size=16))
        return 1 if (pixels[np.arange(30)][:, 0, 0, 0] == np.arange(30)).all() and len(used) == 30 else -1

    source = ArrayDataset(
        lambda _, rows: np.tile(rows[:, None], 4).astype(np.float32), np.zeros(30, np.int64), "thirty"
    )

    def read_features(folder: Path) -> int:
        rows = FeatureCache(folder, 1e9, 8, progress.Timer()).outputs(model, source, range(1))
        return 1 if (rows[np.arange(30)] == 4 * np.arange(30)[:, None]).all() else -1

    model = network(1)
    return {
        "text": Artifact(
            lambda folder, v: runs.write_text(_made(folder) / "report.md", f"{v}" * 5000),
            lambda folder: _version([int(letter) for letter in (folder / "report.md").read_text()], 5000),
        ),
        "JSON": Artifact(
            lambda folder, v: runs.write_json(_made(folder) / "metrics.json", [v] * 999),
            lambda folder: _version(runs.read_json(folder / "metrics.json"), 999),
        ),
        "predictions": Artifact(
            lambda folder, v: predictions(v).save(_made(folder) / "predictions.npz"),
            lambda folder: _version(Predictions.load(folder / "predictions.npz").logits),
        ),
        "figure": Artifact(save_figure, read_figure),
        "model": Artifact(save_model, read_model),
        "checkpoint": Artifact(
            lambda folder, v: _save_checkpoint(folder, model, v + 1),
            lambda folder: read_checkpoint(folder)[0].epoch - 1,
        ),
        "decoded images": Artifact(lambda folder, v: v and read_pixels(folder) or _made(folder), read_pixels),
        "features": Artifact(lambda folder, v: v and read_features(folder) or _made(folder), read_features),
    }  # fmt: skip


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _version(values: Any, number: int | None = None) -> int:
    """The one number that all values are; -1 if they are several, or too few."""
    values = np.asarray(values).ravel()
    return int(values[0]) if (values == values[0]).all() and number in (None, len(values)) else -1


# labels


def labels(folder: Path, cases: int = 100, seed: int = 0) -> dict:
    """Generated folders with missing classes, repeats, broken files: no label shifts, no image is in two parts.

    The colour of every image says its class, so that labels are compared with pixels and not with names.
    """
    shifted = across = images = refused = 0
    for case in range(cases):
        generator = random.Random(f"{seed} {case}")
        place, colours = folder / str(case), _write_case(folder / str(case), generator)
        try:
            examples, pixels = decode(load_examples(str(place)), Data(cache=str(folder / "cache"), image_size=16))
            examples = split(examples, val_fraction=0.3, test_fraction=0.2, seed=case)
        except DataError:  # in words, for instance because too little is left of a class
            refused += 1
            continue
        known = sorted(colours, key=lambda name: generator.random())  # the order in which a model may know them
        for view in (examples, examples.with_classes(known)):
            names = [view.class_names[label] for label in view.labels]
            for row, part in enumerate(view.parts):
                red, green, blue = pixels[np.array([row])][0, 8, 8]
                shifted += part != "" and colours[names[row]] != (red // 32, green // 32, blue // 32)
        parts: dict[str, set[str]] = {}
        for digest, part in zip(examples.digests, examples.parts, strict=True):
            parts.setdefault(digest, set()).update({part} - {""})
        across += sum(len(found) > 1 for found in parts.values())
        images += len(examples)
    return {
        "cases": cases, "refused in words": refused, "images": images, "labels shifted": shifted,
        "images in two parts": across,
        "wrong": [f"{shifted} labels, {across} images"] * (shifted + across > 0) + ["none left"] * (images == 0),
    }  # fmt: skip


def _write_case(place: Path, generator: random.Random) -> dict[str, tuple[int, int, int]]:
    """A data folder with something odd about it; the colour of each class."""
    names = generator.sample(["1", "2", "10", "b", "B", "ant", "🌻", "z z", "Z", "é"], generator.randint(2, 6))
    colours = {name: tuple(int(n) for n in np.unravel_index(i + 1, (8, 8, 8))) for i, name in enumerate(names)}
    parts = generator.choice([("",), ("",), ("train", "val", "test"), ("train", "test")])
    files = []
    for part in parts:
        for name in names:
            if part == "test" and len(names) > 2 and generator.random() < 0.1:
                continue  # a part that lacks a class
            for number in range(generator.randint(6, 14)):
                file = place / part / name / f"{generator.randrange(10**6)}-{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                noise = np.random.default_rng(generator.randrange(2**31)).integers(0, 31, (16, 16, 3))
                Image.fromarray((32 * np.array(colours[name]) + noise).astype(np.uint8)).save(file)
                files.append(file)
    for _ in range(generator.randint(0, 5)):  # the same image again, in the same class, perhaps in another part
        file = generator.choice(files)
        target = place / generator.choice(parts) / file.parent.name
        if target.is_dir():
            shutil.copy(file, target / f"copy {generator.randrange(10**6)}.png")
    for _ in range(generator.randint(0, 3)):  # and under another label
        shutil.copy(generator.choice(files), generator.choice(files).parent / f"lie {generator.randrange(10**6)}.png")
    for _ in range(generator.randint(0, 4)):
        file = generator.choice(files)
        file.with_name(f"{generator.randrange(10**6)} broken.png").write_bytes(file.read_bytes()[:50])
    return colours


# near duplicates


def near(folder: Path, data: Path | None = None, photographs: int = 150) -> dict:
    """Recoded (quality 30) and halved copies of photographs must be found, and no pair of different ones.

    Args:
        folder: unused.
        data: folder of photographs; generated images if None.
        photographs: how many to take; 150 make 11,175 pairs.
    """
    generator = np.random.default_rng(0)
    if data is None:
        originals = [_scene(generator) for _ in range(photographs)]
    else:
        files = [file for file in sorted(data.rglob("*")) if file.is_file()]
        chosen = generator.permutation(len(files))[:photographs]
        originals = [Image.open(files[row]).convert("RGB") for row in chosen]
    small = [load_image(_as_bytes(image, "PNG"), THUMBNAIL, "stretch") for image in originals]
    found = {"recoded": 0, "half the size": 0}
    for image, own in zip(originals, small, strict=True):
        half = image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BICUBIC)
        for name, data_ in (
            ("recoded", _as_bytes(image, "JPEG", quality=30)),
            ("half the size", _as_bytes(half, "PNG")),
        ):
            found[name] += bool(near_pairs(np.stack([own, load_image(data_, THUMBNAIL, "stretch")])))
    false = near_pairs(np.stack(small))
    pairs = len(small) * (len(small) - 1) // 2
    recall = {name: count / len(small) for name, count in found.items()}
    wrong = [f"recall {name}: {value}" for name, value in recall.items() if value < 0.95]
    return {
        "photographs": len(small), "pairs": pairs, "recall": recall, "false pairs": len(false),
        "wrong": wrong + [f"{len(false)} false pairs"] * bool(false),
    }  # fmt: skip


def _scene(generator: np.random.Generator) -> Image.Image:
    """A generated image with large and small shapes."""
    coarse = [generator.integers(0, 256, (n, n, 3)).astype(np.uint8) for n in (3, 6, 12, 40)]
    layers = [np.asarray(Image.fromarray(a).resize((160, 120), Image.Resampling.BICUBIC), float) for a in coarse]
    return Image.fromarray(np.average(layers, axis=0, weights=[4, 3, 2, 1]).astype(np.uint8))


def _as_bytes(image: Image.Image, kind: str, **how) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


# fuzz


def fuzz(folder: Path, number: int = 1_000_000, seconds: float = 600, workers: int = 1) -> dict:
    """Mutated files through our loader: no crash, no exception but ours, none over a second.

    In processes of their own, for a crash to be seen. The time that counts is that of the processor: another program
    may hold a loader up.
    """
    subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "tests" / "corpus.py"), str(folder / "corpus")],
        check=True,
        capture_output=True,
    )
    line = [sys.executable, __file__, "fuzz-worker", "--data", str(folder / "corpus/files/odd")]
    line += ["--number", str(number // workers), "--seconds", str(seconds)]
    with ThreadPoolExecutor(workers) as pool:
        done = list(
            pool.map(
                lambda seed: subprocess.run([*line, "--seed", str(seed)], capture_output=True, text=True, check=False),
                range(workers),
            )
        )
    wrong = [f"a crash: exit code {one.returncode}: {one.stderr[-500:]}" for one in done if one.returncode]
    results = [json.loads(one.stdout) for one in done if not one.returncode]
    sums = {key: sum(r[key] for r in results) for key in ("files", "decoded", "refused")}
    slowest = max((r["slowest"] for r in results), default=0.0)
    wrong += [problem for r in results for problem in r["wrong"]]
    return sums | {"slowest, seconds": slowest, "wrong": wrong}


def fuzz_worker(data: Path, number: int, seconds: float, seed: int) -> dict:
    """One process of `fuzz`: bytes changed, cut out, repeated, exchanged with another file's."""
    warnings.simplefilter("ignore")  # Pillow's, about damaged tags and many pixels
    generator = random.Random(seed)
    originals = [path.read_bytes() for path in sorted(data.iterdir()) if path.is_file()]
    originals = [contents for contents in originals if contents]
    counts, wrong, slowest, end = {"files": 0, "decoded": 0, "refused": 0}, [], 0.0, time.monotonic() + seconds
    while counts["files"] < number and time.monotonic() < end and len(wrong) < 20:
        mutated = _mutated(generator, originals)
        start = time.thread_time()
        try:
            array = load_image(mutated, 16, generator.choice(("crop", "pad", "stretch")))
            counts["decoded"] += array.shape == (16, 16, 3) and array.dtype == np.uint8
        except BadImageError:
            counts["refused"] += 1
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}: {mutated[:60].hex()}")
        taken = time.thread_time() - start
        slowest = max(slowest, taken)
        if taken > 1:
            wrong.append(f"{taken:.1f} s: {mutated[:60].hex()}, {len(mutated)} bytes")
        counts["files"] += 1
    return counts | {"slowest": round(slowest, 3), "wrong": wrong}


def _mutated(generator: random.Random, originals: Sequence[bytes]) -> bytes:
    data = bytearray(generator.choice(originals))
    for _ in range(generator.randint(1, 4)):
        if not data:
            break
        # Headers are short and matter most: half of the changes fall into the first hundred bytes.
        start = generator.randrange(min(len(data), 100) if generator.random() < 0.5 else len(data))
        stop = min(len(data), start + generator.randint(1, 40))
        kind = generator.randrange(6)
        if kind <= 1:
            data[start] = generator.randrange(256)
        elif kind == 2:
            data[start] ^= 1 << generator.randrange(8)
        elif kind == 3:
            del data[start : stop if generator.random() < 0.8 else len(data)]
        elif kind == 4:
            data[start:start] = data[start:stop]
        else:
            other = generator.choice(originals)
            data[start:stop] = other[start : start + generator.randint(1, 40)]
    return bytes(data)


# cache


def cache(folder: Path, workers: int = 8, seconds: float = 120, seed: int = 0) -> dict:
    """Processes that decode and compute activations over one cache that is too small for them, and are killed.

    Args:
        folder: for images and cache.
        workers: processes at any time; one that was killed is followed by another.
        seconds: how long.
        seed: of the moments.
    """
    _write_digits(folder / "images", each=6)
    generator, end = random.Random(seed), time.monotonic() + seconds
    fork = multiprocessing.get_context("fork")  # born with all imports, so that they work for most of their lives
    running: list[multiprocessing.Process] = []
    born = 0
    while time.monotonic() < end:
        while len(running) < workers:
            running.append(fork.Process(target=cache_worker, args=(folder, end - time.monotonic(), born)))
            running[-1].start()
            born += 1
        time.sleep(generator.uniform(0, 4 / workers))
        victim = running.pop(generator.randrange(len(running)))
        victim.kill()
        victim.join()
    for process in running:
        process.join()
    output = [(folder / f"said-{number}").read_text() for number in range(born) if (folder / f"said-{number}").exists()]
    counts = [json.loads(line) for text in output for line in text.splitlines() if line.endswith("}")]
    sums = {key: sum(count[key] for count in counts) for key in ("pixels", "activations")}
    wrong = [problem for count in counts for problem in count["wrong"]]
    wrong += [text[-800:] for text in output if "Traceback" in text] + ["nothing was read"] * (not counts)
    left = [path.stat().st_size for path in (folder / "cache").glob("[!.]*.rows")]
    return {
        "processes": born, "kills": born - len(running), "arrays compared": sums,
        "half written files left": len(list((folder / "cache").glob(".tmp-*"))),
        "files left": len(left), "bytes left": sum(left), "limit": CACHE_LIMIT, "wrong": wrong,
    }  # fmt: skip


CACHE_LIMIT = 300_000
"""Bytes: about a third of what the processes of `cache` ask for together."""


def cache_worker(folder: Path, seconds: float, seed: int) -> None:
    """One process of `cache`: writes a line for every few arrays that it has compared with what they must be."""
    out = (folder / f"said-{seed}").open("w")
    os.dup2(out.fileno(), 1)
    os.dup2(out.fileno(), 2)
    generator, end = random.Random(seed), time.monotonic() + seconds
    examples = load_examples(str(folder / "images"))
    while time.monotonic() < end:
        counts: dict[str, Any] = {"pixels": 0, "activations": 0, "wrong": []}
        data = Data(
            image_size=generator.choice((16, 20, 24)), resize=generator.choice(("crop", "stretch")),
            cache=str(folder / "cache"), cache_gb=CACHE_LIMIT / 2**30, memory_gb=generator.choice((0.0, 1.0)),
        )  # fmt: skip
        used, pixels = decode(examples, data)
        held = [
            (
                f"{data.image_size} {data.resize}",
                pixels,
                [load_image(image, data.image_size, data.resize) for image in used.images],
            )
        ]
        for _ in range(4):
            number = generator.randrange(8)
            values = np.random.default_rng(number).normal(size=(200, 6, 20)).astype(np.float16)
            memory = generator.choice((0.0, 1e9))
            name = f"features-{number:016x}"
            batches = lambda _, values=values: (values[i : i + 20] for i in range(0, 200, 20))  # noqa: E731
            rows = Cache(folder / "cache", CACHE_LIMIT).rows(
                name, batches, values.shape, np.float16, memory_bytes=memory
            )
            held.append((name, rows, values))
        for name, rows, expected in held:  # by now others have deleted much of it
            if rows[np.arange(len(expected))].tobytes() != np.array(expected).tobytes():
                counts["wrong"].append(f"{name}: wrong bytes")
            counts["activations" if name.startswith("features") else "pixels"] += 1
        os.write(1, f"{json.dumps(counts)}\n".encode())


# cost


def cost(run: Path) -> dict:
    """Part of a finished run's seconds that went into checkpoints."""
    seconds = runs.read_json(run / "metrics.json")["seconds"]
    share = seconds.get("checkpoints", 0.0) / seconds["total"]
    epochs = len((run / "history.csv").read_text().splitlines()) - 1
    wrong = [f"{share:.1%}"] if share > 0.02 and seconds["total"] >= 60 else []
    return {
        "checkpoints": seconds.get("checkpoints", 0.0),
        "total": seconds["total"],
        "share": share,
        "epochs": epochs,
        "wrong": wrong,
    }


@runs.script()
def main() -> None:
    """Parse, measure one part, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["kills", "damage", "writers", "labels", "near", "fuzz", "cache", "cost", "fuzz-worker"]
    parser.add_argument("part", choices=parts, metavar="PART", help=" ".join(parts[:-1]))
    parser.add_argument("--number", type=int, help="kills, flips, cases, photographs or files")
    parser.add_argument("--runs", type=int, default=10, help="kills: runs, at least")
    parser.add_argument("--workers", type=int, default=2, help="kills, fuzz, cache: processes")
    parser.add_argument("--seconds", type=float, default=600, help="fuzz, cache: at most")
    parser.add_argument("--data", type=Path, help="near: a folder of photographs")
    parser.add_argument("--run", type=Path, help="cost: a finished run of a minute or more")
    parser.add_argument("--seed", type=int, default=0)
    known = parser.parse_args()
    number = {} if known.number is None else {"number": known.number}
    if known.part == "fuzz-worker":
        print(json.dumps(fuzz_worker(known.data, known.number, known.seconds, known.seed)))
        return
    if known.part in {"damage", "writers"}:
        runs.import_tensorflow()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = {
            "kills": lambda: kills(folder, known.runs, known.number or 200, known.workers, known.seed),
            "damage": lambda: damage(folder, known.number or 200, seed=known.seed),
            "writers": lambda: writers(folder),
            "labels": lambda: labels(folder, known.number or 100, known.seed),
            "near": lambda: near(folder, known.data, known.number or 150),
            "fuzz": lambda: fuzz(folder, **number, seconds=known.seconds, workers=known.workers),
            "cache": lambda: cache(folder, known.workers, known.seconds, known.seed),
            "cost": lambda: cost(known.run),
        }[known.part]()
    print(json.dumps(result | {"seconds": round(time.perf_counter() - start, 1)}, indent=2, ensure_ascii=False))
    sys.exit(bool(result["wrong"]))


if __name__ == "__main__":
    main()
