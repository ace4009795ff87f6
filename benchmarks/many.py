"""scripts/predict_many.py against other ways to classify a folder, its memory, and what killed workers cost. On Linux.

python benchmarks/many.py rate --run runs/RUN --photos FOLDER --images 2000    # against predict.py and model.predict
python benchmarks/many.py memory --run runs/RUN --photos FOLDER --images 2000 20000
python benchmarks/many.py kills --run runs/RUN --photos FOLDER --images 2000   # three workers, by SIGKILL
python benchmarks/many.py stages --run runs/RUN --photos FOLDER --images 500   # CPU time of what is done with an image

Images are copies of those in --photos, each with its number behind the end of the picture, so that no two files are
equal. Every contestant is a process of its own, timed from its start to its end; CPU seconds and memory (proportional
set size: what processes share counts once) are those of all its processes, looked at every two seconds. Contestants
take turns, and the ratio of the medians counts. `model.predict` sees one view of an image: take a run without more.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from template import runs
from template.data.sources.files import list_files

SCRIPTS = Path(__file__).parents[1] / "scripts"
PLAIN = """
import sys
from template import runs
runs.import_tensorflow()
import keras
model = keras.saving.load_model(sys.argv[1], compile=False)
images = keras.utils.image_dataset_from_directory(
    sys.argv[2], labels=None, shuffle=False, batch_size=32, image_size=model.input_shape[1:3], crop_to_aspect_ratio=True
)
print(len(model.predict(images, verbose=0)))
"""
"""What a guide would have one write."""
PAUSE = 2.0
"""Seconds between two looks at the processes."""
CHUNK = 32


@runs.script()
def main() -> None:
    """Measure one part, print it, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for measure, images in ((rate, [2000]), (memory, [2000, 20_000]), (kills, [2000]), (stages, [500])):
        part = parts.add_parser(measure.__name__, help=measure.__doc__.splitlines()[0])
        part.set_defaults(measure=measure)
        part.add_argument("--run", type=Path, required=True, help="folder of a finished run")
        part.add_argument("--photos", type=Path, required=True, help="folder with images to copy")
        part.add_argument("--images", type=int, nargs="+", default=images, help=f"how many (default: {images})")
        part.add_argument("--rounds", type=int, default=1, help="turns of each contestant (default: 1)")
        part.add_argument("--out", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    if arguments.out:
        runs.check_output(arguments.out, "file")
    if not sys.platform.startswith("linux"):
        sys.exit("Expected Linux, where /proc tells what processes take.")
    with tempfile.TemporaryDirectory() as scratch:
        result = arguments.measure(Path(scratch), arguments.run.resolve(), arguments)
    if arguments.out:
        runs.write_json(arguments.out, {"part": arguments.part, **result, "environment": runs.environment()})


def rate(scratch: Path, run: Path, arguments: argparse.Namespace) -> dict:
    """Seconds of predict_many.py, predict.py and a plain loop of model.predict, on the same images."""
    (number,) = arguments.images
    folder = copy_images(arguments.photos, scratch / "images", number)
    contestants: dict[str, Callable[[int], list]] = {
        "predict_many.py": lambda turn: many(run, folder, scratch / f"many-{turn}"),
        "predict.py": lambda turn: [SCRIPTS / "predict.py", "--run", run, folder, "--out", scratch / "rows.csv"],
        "predict.py --runtime onnx": lambda turn: [
            *(SCRIPTS / "predict.py", "--run", run, folder, "--out", scratch / "rows.csv", "--runtime", "onnx")
        ],
        "model.predict": lambda turn: ["-c", PLAIN, run / "model.keras", folder],
    }
    taken: dict[str, list[Taken]] = {name: [] for name in contestants}
    for turn in range(arguments.rounds):
        for name, line in contestants.items():
            taken[name].append(Taken.of(line(turn)))
            print(f"{name}: {taken[name][-1]}", flush=True)
    rows = {}
    for name, each in taken.items():
        seconds, cpu = (float(np.median([getattr(one, what) for one in each])) for what in ("seconds", "cpu_seconds"))
        rows[name] = {"seconds": seconds, "cpu_seconds": cpu, "a_second": number / seconds}
    ours = rows["predict_many.py"]
    for name, row in rows.items():
        row |= {f"{what}_ratio": row[what] / ours[what] for what in ("seconds", "cpu_seconds")}
        print(f"{name:<28}{row['a_second']:>8.1f} a second{row['seconds_ratio']:>8.2f} times the seconds of ours"
              f"{row['cpu_seconds_ratio']:>8.2f} times the CPU seconds")  # fmt: skip
    return {"images": number, "rounds": arguments.rounds, "contestants": rows}


def memory(scratch: Path, run: Path, arguments: argparse.Namespace) -> dict:
    """Peak memory of predict_many.py for several numbers of images."""
    rows = []
    for number in arguments.images:
        folder = copy_images(arguments.photos, scratch / f"images-{number}", number)
        taken = Taken.of(many(run, folder, scratch / f"many-{number}"))
        rows.append({"images": require_complete(scratch / f"many-{number}", folder), **vars(taken)})
        print(f"{number:,} images: {taken}, {taken.own_cpu_seconds:.1f} CPU s of the process that writes", flush=True)
    return {"runs": rows}


def kills(scratch: Path, run: Path, arguments: argparse.Namespace) -> dict:
    """Kill three workers while predict_many.py is at work, and count the rows."""
    (number,) = arguments.images
    folder, out = copy_images(arguments.photos, scratch / "images", number), scratch / "many"
    victims, killed = ["ray::Classifying", "ray::Decoder", "ray::Classifying"], []

    def kill(processes: Sequence[int]) -> None:
        done = len(list(out.glob("parts/*.parquet"))) if out.exists() else 0
        if victims and done > len(killed):
            named = (process for process in processes if command(process).startswith(victims[0]))
            if (victim := next(named, None)) is not None:
                os.kill(victim, signal.SIGKILL)
                killed.append(victims.pop(0))

    taken = Taken.of(many(run, folder, out, "--part-size", max(1, number // 20)), kill)
    rows = require_complete(out, folder)
    print(f"killed: {', '.join(killed)}; {rows:,} rows of {number:,} images, each once; {taken}")
    return {"images": number, "killed": killed, "rows": rows, "seconds": taken.seconds}


def stages(scratch: Path, run: Path, arguments: argparse.Namespace) -> dict:
    """CPU milliseconds an image, in one thread, of reading and decoding, of the network, and of its row."""
    from template.deploy.many.network import Network, pack_run
    from template.deploy.many.rows import Row, decode

    (number,) = arguments.images
    paths = [str(path) for path in list_files(copy_images(arguments.photos, scratch / "images", number))]
    packed = pack_run(run)
    network = Network(packed.files, packed.runtime, threads=1)
    row = Row(class_names=packed.class_names, top_k=3, least=0.0, above=(), model=packed.digest, features=0)
    taken = dict.fromkeys(("decode", "network", "row"), 0.0)
    for start in range(0, number, CHUNK):
        clock = [time.process_time()]
        found = decode(paths[start : start + CHUNK], packed.inputs)
        clock.append(time.process_time())
        answers = network.classify(found.pixels)
        clock.append(time.process_time())
        row.table(found, lambda pixels, answers=answers: answers)
        clock.append(time.process_time())
        for name, seconds in zip(taken, np.diff(clock), strict=True):
            taken[name] += 1000 * seconds / number
    views = len(packed.inputs.views)
    print(f"{packed.inputs.image_size} pixels, {views} views, by {packed.runtime}; CPU ms an image: "
          + ", ".join(f"{name} {value:.2f}" for name, value in taken.items()))  # fmt: skip
    return {"images": number, "size": packed.inputs.image_size, "views": views, "ms": taken}


def many(run: Path, folder: Path, out: Path, *options: object) -> list:
    """The command."""
    return [SCRIPTS / "predict_many.py", "--run", run, folder, "--out", out, *options]


def require_complete(out: Path, folder: Path) -> int:
    """Every image of the folder has one row, and an answer; how many."""
    import pyarrow.parquet as pq

    tables = [pq.read_table(file, columns=["path", "answer"]) for file in sorted(out.glob("parts/*.parquet"))]
    found = [path for table in tables for path in table["path"].to_pylist()]
    if found != [str(path) for path in list_files(folder)]:
        sys.exit(f"rows are missing, twice or out of order: {len(found)}")
    if lost := sum(table["answer"].null_count for table in tables):
        sys.exit(f"{lost} images have no answer")
    return len(found)


def copy_images(photos: Path, folder: Path, number: int) -> Path:
    """Write so many different files."""
    originals = [path.read_bytes() for path in list_files(photos) if path.suffix.lower() in {".jpg", ".jpeg"}]
    if not originals:
        sys.exit(f"{str(photos)!r} has no JPEG images.")
    for row in range(number):
        file = folder / f"{row // 1000:04d}" / f"{row:07d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(originals[row % len(originals)] + f"{row:07d}".encode())
    return folder


class Taken:
    """What a command took.

    Args:
        seconds: from start to end.
        cpu_seconds: of all its processes.
        own_cpu_seconds: of the one that was started.
        mb: most memory that they held together.
    """

    def __init__(self, seconds: float, cpu_seconds: float, own_cpu_seconds: float, mb: float) -> None:
        self.seconds, self.cpu_seconds, self.own_cpu_seconds, self.mb = seconds, cpu_seconds, own_cpu_seconds, mb

    def __str__(self) -> str:
        return f"{self.seconds:.0f} s, {self.cpu_seconds:.0f} CPU s, {self.mb:.0f} MB"

    @classmethod
    def of(cls, line: Sequence[object], look: Callable[[Sequence[int]], None] = lambda processes: None) -> "Taken":
        """Run Python with these arguments.

        Args:
            line: the arguments.
            look: called every two seconds with the numbers of its processes.
        """
        cpu: dict[int, float] = {}
        peak, start = 0.0, time.perf_counter()
        with tempfile.TemporaryFile() as log:
            command_line = [sys.executable, *map(str, line)]
            with subprocess.Popen(command_line, stdout=log, stderr=log) as process:
                while process.poll() is None:
                    family = list(descendants(process.pid))
                    cpu |= {one: seconds for one in family if (seconds := cpu_seconds(one))}
                    peak = max(peak, sum(map(proportional_mb, family)))
                    look(family)
                    time.sleep(PAUSE)
            if process.returncode:
                log.seek(0)
                sys.exit(f"{command_line[:2]} ended with {process.returncode}:\n{log.read().decode()[-2000:]}")
        return cls(time.perf_counter() - start, sum(cpu.values()), cpu[process.pid], peak)


def descendants(root: int) -> Iterator[int]:
    """Numbers of a process and of all below it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = {root}
    while more := {process for process, parent in parents.items() if parent in found} - found:
        found |= more
    yield from found


def command(process: int) -> str:
    """Command line of a process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_text()
    return ""


def cpu_seconds(process: int) -> float:
    """Of all its threads."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def proportional_mb(process: int) -> float:
    """Memory of a process; of what several share, its part."""
    with contextlib.suppress(OSError, IndexError):
        held = Path(f"/proc/{process}/smaps_rollup").read_text()
        return int(held.partition("\nPss:")[2].split()[0]) / 1000
    return 0.0


if __name__ == "__main__":
    main()
