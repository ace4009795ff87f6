"""What survives: processes killed at random, damaged checkpoints, full disks, mixed-up labels, mutated pictures.

python scripts/faults.py kills              # 200 kill -9 of training runs; each must end as if nothing had happened
python scripts/faults.py damage             # single-bit flips and truncations of a checkpoint, all to be noticed
python scripts/faults.py writers            # a crash and an error at every step of every writer, and disks that fill up
python scripts/faults.py labels             # generated folders and tables: no label shifts, no picture in two parts
python scripts/faults.py near --data FOLDER # recoded and resized copies of photographs: found, and nothing else
python scripts/faults.py fuzz --seconds 600 # mutated files through the loader
python scripts/faults.py cost --run RUN     # part of a run's seconds that went into checkpoints

Every part prints its figures as JSON, and ends with exit code 1 if something was lost. docs/reliability.md has those of
one machine; tests/test_faults.py runs each part for a few seconds.
"""

import argparse
import contextlib
import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

SCRIPTS = Path(__file__).resolve().parent


# kills


def kills(folder: Path, runs: int = 10, wanted: int = 200, workers: int = 2, seed: int = 0) -> dict:
    """Train the same runs once in peace and once under `kill -9`, resumed after each, and compare them bit for bit.

    A third of the kills fall anywhere after the start, a third while it trains, a third when a save is seen to begin.

    Args:
        folder: for pictures and runs.
        runs: at least so many, of different seeds; more if they finish before they were killed often enough.
        wanted: kills over all runs.
        workers: runs at a time.
        seed: of the moments.
    """
    pictures, weights = folder / "pictures", folder / "tiny.weights.h5"
    _write_digits(pictures)
    _write_weights(weights)
    results: list[dict] = []
    with ThreadPoolExecutor(workers) as pool:
        while sum(r["kills"] for r in results) < wanted:
            left = wanted - sum(r["kills"] for r in results)
            numbers = range(len(results), max(len(results) + workers, runs))
            quota = -(-left // len(numbers))
            results += pool.map(lambda n, q=quota: _kill_one(folder, pictures, weights, n, q, seed), numbers)
    sums = {
        key: sum(r[key] for r in results)
        for key in ("kills", "during a save", "before training", "in the final fit", "stopped early")
    }
    wrong = [f"run {number}: {problem}" for number, r in enumerate(results) for problem in r["problems"]]
    longest = max(r["epochs repeated"] for r in results)
    return {"runs": len(results), **sums, "most epochs repeated": longest, "wrong": wrong}


def _settings(pictures: Path, weights: Path, cache: Path, number: int) -> list[str]:
    """Two stages, the first on stored activations; every other run begins with a probe."""
    return [
        f"--data.path={pictures}", f"--data.cache={cache}", "--data.image_size=16", "--backbone.name=tiny",
        f"--backbone.weights={weights if number % 2 else 'none'}", "--augment.flip=false", "--augment.policy=medium",
        "--head.dropout=0.3", "--train.batch_size=32", "--train.patience=4", "--train.final_fit=yes",
        f"--train.seed={number}",
        '--stages=[{unfreeze=1, epochs=8, views=2, refresh=2, learning_rate=3e-3}, '
        '{unfreeze="all", epochs=12, learning_rate=1e-2}]',
    ]  # fmt: skip


def _kill_one(folder: Path, pictures: Path, weights: Path, number: int, quota: int, seed: int) -> dict:
    """One run in peace, and the same again under fire."""
    peace, fire = folder / f"peace-{number}", folder / f"fire-{number}"
    generator = random.Random(f"{seed} {number}")
    _attempt(["--runs", peace, *_settings(pictures, weights, peace / "cache", number)], None, None)
    (whole,) = peace.glob("2*")
    counts = dict.fromkeys(("kills", "during a save", "before training", "in the final fit", "epochs repeated"), 0)
    problems, run, reached = [], None, 0
    while True:
        line = ["--resume", run] if run else ["--runs", fire, *_settings(pictures, weights, fire / "cache", number)]
        moment = generator.choice(("any", "training", "save")) if counts["kills"] < quota else None
        code, said = _attempt(line, moment, generator, fire)
        run = next(fire.glob("2*"), None)
        epochs = [int(match) for match in re.findall(r"epoch +(\d+)/", said)]
        if epochs:
            counts["epochs repeated"] = max(counts["epochs repeated"], reached + 1 - epochs[0])
            reached = max(reached, epochs[-1])
        if code == -signal.SIGKILL:
            counts["kills"] += 1
            counts["during a save"] += any(fire.glob("2*/checkpoints/.tmp-*")) or any(fire.glob("2*/final/.tmp-*"))
            counts["before training"] += "stage 1" not in said and "stage 2" not in said
            counts["in the final fit"] += "once more" in said
            continue
        if code:
            problems.append(f"exit code {code}: {said[-2000:]}")
        break
    problems += _differences(whole, run) if not problems else []
    with (whole / "history.csv").open(newline="") as file:
        counts["stopped early"] = len(list(csv.DictReader(file))) < 20
    return counts | {"problems": problems}


def _attempt(
    line: list, moment: str | None, generator: random.Random | None, fire: Path | None = None
) -> tuple[int, str]:
    """Run train.py, perhaps killed at a moment of this kind: exit code and what was printed."""
    said: list[str] = []
    command = [sys.executable, str(SCRIPTS / "train.py"), *map(str, line)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        reader = threading.Thread(target=lambda: said.extend(process.stdout))
        reader.start()
        if moment == "any":
            _wait(process, lambda: False, generator.uniform(0, 12))
        elif moment:
            _wait(process, lambda: any(re.match(r"stage|again", text) for text in said), 600)
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
    return process.returncode, "".join(said)


def _saving(fire: Path) -> bool:
    return any(fire.glob("2*/checkpoints/.tmp-*/arrays.npz")) or any(fire.glob("2*/final/.tmp-*/arrays.npz"))


def _wait(process: subprocess.Popen, until: callable, seconds: float) -> None:
    """Until something is so, the process has ended, or the seconds are over."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end and not until():
        time.sleep(0.0005 if end - time.monotonic() < 0.1 or seconds > 100 else 0.01)


def _differences(one: Path, other: Path) -> list[str]:
    """What is not equal to the last bit in two runs: final weights, best weights and optimizer, history, predictions."""
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


PARTS = {"kills": kills}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    known = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = kills(Path(folder), known.runs, known.kills, known.workers)
        print(json.dumps(result | {"seconds": round(time.perf_counter() - start)}, indent=2))


if __name__ == "__main__":
    main()
