"""Every command of the README and the documentation, on photographs of one's own: how it ended, and its seconds.

    python benchmarks/commands.py --images FOLDER --per-class 50 --out commands.md     # all pages
    python benchmarks/commands.py --images FOLDER --pages README.md docs/labels.md

FOLDER is one of class folders, of which some become `photos`, others of each class `other_photos`, `folder` and
`unlabelled`; `home` has what else the pages name. Each command is called once, though several pages may have it; of
trainings, the table has also how far the end was from what was forecast after the first tenth. What asks a person
(`annotate.py`, `serve.py`) is asked for its page once. Runs are written beside --out, and kept. Ends with 1 if a
command did not end well.
"""

import argparse
import csv
import itertools
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from template import runs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHERS = 20
"""Images of each class that are not trained on, and as many without labels."""
SAME = {
    "photos": ("scans", "flowers", "flowers20"),
    "other_photos": ("others", "other_hospital"),
    "new_photo.jpg": ("photo.jpg",),
}
"""Other names that pages have for them."""
SERVERS = ("serve", "annotate")
UNITS = {"s": 1, "min": 60}
TAKEN_AWAY = 30
"""Seconds until a machine is."""
NOT_HERE = {"s3://": "needs a bucket"} | dict.fromkeys(
    ("efficientnetb4", "=plain", "=poly", "images.npz"), "a test applies the page's diff, and trains"
)
"""Commands with this in them are not called, and why."""
PHOTOS = "python scripts/train.py --data.path=photos"
SECOND = f"{PHOTOS} --train.seed=1"


@runs.script()
def main() -> None:
    """Walk the pages and write a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="class folders")
    parser.add_argument("--per-class", type=int, default=50, help="images of each class to train on (default: 50)")
    parser.add_argument("--seconds", type=int, default=1200, help="for tune.py (default: 1200, as the README has it)")
    parser.add_argument("--pages", type=Path, nargs="+", default=PAGES, help="Markdown (default: README.md, docs/)")
    parser.add_argument("--out", type=Path, default=Path("commands.md"), help="Markdown to write (commands.md)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background would ignore it
    home = arguments.out.resolve().with_suffix("")
    lay_out(arguments.images, home, arguments.per_class)
    walk, rows = Walk(home, arguments.seconds), ["| command | seconds | exit code | forecast |", "|---|---|---|---|"]
    for page in arguments.pages:
        for command in commands(page.read_text(encoding="utf-8")):
            for row in walk.call(command):
                rows.append(row)
                print(row, flush=True)
                arguments.out.write_text("\n".join(rows) + "\n", encoding="utf-8")
    sys.exit(walk.failed)


def commands(page: str) -> Iterator[str]:
    """What a page tells to call, in its order, in blocks and between backticks."""
    for command in re.findall(r"(?:^|`|&& )(python scripts/[^#`\n]*)", page.replace("\\\n", ""), re.MULTILINE):
        yield " ".join(command.split())


def lay_out(images: Path, home: Path, per_class: int) -> None:
    """The folders, images and tables that the pages speak of."""
    kinds = {kind: sorted(kind.iterdir()) for kind in sorted(images.iterdir()) if kind.is_dir()}
    needed = per_class + 3 * OTHERS
    for kind, found in kinds.items():
        if len(found) < needed:
            sys.exit(f"{str(kind)!r}: expected {needed} images or more: --per-class, and {3 * OTHERS} that are not "
                     f"trained on. Received: {len(found)}. Choose other images, or fewer.")  # fmt: skip
    home.mkdir(parents=True)
    for kind, found in kinds.items():
        files = iter(found)
        for name, number in (
            ("photos", per_class),
            ("other_photos", OTHERS),
            ("folder", OTHERS),
            ("unlabelled", OTHERS),
        ):
            folder = home / name / kind.name if name in ("photos", "other_photos") else home / name
            folder.mkdir(parents=True, exist_ok=True)
            for file in itertools.islice(files, number):
                shutil.copy(file, folder / f"{kind.name}-{file.name}")
    shutil.copy(next((home / "folder").iterdir()), home / "new_photo.jpg")
    for one, names in SAME.items():
        for name in names:
            (home / name).symlink_to(home / one)
    (home / "configs").symlink_to(ROOT / "configs")
    shutil.copy(ROOT / "configs" / "tune.toml", home / "mine.toml")
    photos = sorted((home / "photos").rglob("*.jpg"))
    (home / "list.txt").write_text("".join(f"{photo}\n" for photo in photos), encoding="utf-8")
    of = {photo: photo.parent.name for photo in photos}
    write_table(
        home / "scans.csv", ("label", "patient"), {photo: (of[photo], 2 * i // 3) for i, photo in enumerate(photos)}
    )
    write_table(home / "labels.csv", ("label",), {photo: (of[photo],) for photo in photos})
    for name in ("several.csv", "digits.csv"):
        write_table(home / name, ("label",), {photo: (f"{of[photo]};{photo.stat().st_size % 2}",) for photo in photos})


def write_table(file: Path, columns: tuple[str, ...], rows: dict[Path, tuple]) -> None:
    """A table of images."""
    with file.open("w", encoding="utf-8", newline="") as table:
        csv.writer(table).writerows([("path", *columns), *((path, *row) for path, row in rows.items())])


class Walk:
    """Calls commands, each once.

    Args:
        home: the folder to call them in.
        seconds: for tune.py.
    """

    def __init__(self, home: Path, seconds: int) -> None:
        self.home, self.seconds, self.failed, self.number = home, seconds, False, 0
        self.called: set[str] = set()
        self.made: dict[str, Path] = {}  # the run that a command has made

    def call(self, command: str) -> Iterator[str]:
        """Rows of the table: of what this needs and is not there yet, and of itself."""
        if command in self.called:
            return
        self.called.add(command)
        if why := next((why for part, why in NOT_HERE.items() if part in command), None):
            yield f"| `{command}` | not called: {why} | | |"
            return
        if re.search(r"--run runs/|compare.py|--resume runs/RUN", command):
            yield from self.call(PHOTOS)
        if re.search("runs/(OTHER|SAME)", command):
            yield from self.call(SECOND)
        yield self._row(command)

    def _row(self, command: str) -> str:
        _, script, *rest = shlex.split(self._filled_in(command))
        before, start = self._runs(), time.monotonic()
        line = [sys.executable, str(ROOT / script), *rest]
        self.number += 1
        log = self.home / "output" / f"{self.number:02d}.txt"
        log.parent.mkdir(exist_ok=True)
        with log.open("w", encoding="utf-8") as output:
            print("$", script, *rest, file=output, flush=True)
            if Path(script).stem in SERVERS:
                code = _ask_once(line, self.home, output)
            elif "--runs=/mnt" in command:  # the machine that is taken away
                code = _take_away(line, self.home, output)
            else:
                code = subprocess.run(line, cwd=self.home, stdout=output, stderr=output, check=False).returncode
        seconds = time.monotonic() - start
        self.failed |= code != 0
        for run in self._runs() - before:
            self.made[command] = run
        forecast = forecast_error(log.read_text(encoding="utf-8")) if Path(script).stem == "train" else ""
        return f"| `{command}` | {seconds:.0f} | {code} | {forecast} |"

    def _runs(self) -> set[Path]:
        return {*(self.home / "runs").glob("*"), *(self.home / "disk" / "runs").glob("*")}

    def _filled_in(self, command: str) -> str:
        """With names in place of what stands for one."""
        refitted = (run for of, run in self.made.items() if "cross_validate" in of and (run / "final").is_dir())
        tuned = (run for of, run in self.made.items() if "tune.py" in of)
        elsewhere = (run for run in self.made.values() if run.parent.parent.name == "disk")
        for pattern, value in (
            (r"/mnt/disk/runs/RUN\b", next(elsewhere, "")),
            ("/mnt/disk", "disk"),
            (r"runs/RUN\b", self.made.get(PHOTOS, "")),
            (r"runs/(OTHER|SAME_WITH_ANOTHER_SEED)\b", self.made.get(SECOND, "")),
            ("runs/FOLDER", next(refitted, "")),
            (r"runs/[-\d]+tune\S*", f"{next(tuned, '')} --trials 1"),
            (r"--seconds \d+|(?<=mine.toml)", f" --seconds {self.seconds}"),
            (r"=S\b", "=1"),
            ("FOLDER", "photos"),
            ("melanoma", next((self.home / "photos").iterdir()).name),
            (r"labels\.csv(?= --data\.labels=multi)", "several.csv"),
            (r"--out rows", f"--out rows-{self.number}"),
        ):
            command = re.sub(pattern, str(value), command)
        return command


def forecast_error(output: str) -> str:
    """After the first tenth of a run: the seconds it took in the end, over those forecast then, or the inverse."""
    took = re.search(r", (\d+) s in all", output)
    said = re.findall(r"run, (\d+) (s|min), about (\d+) (s|min) left", output) if took else ()
    for gone, of_gone, left, of_left in said:
        if (since := int(gone) * UNITS[of_gone]) >= int(took[1]) / 10:
            ratio = int(took[1]) / (since + int(left) * UNITS[of_left])
            return f"{max(ratio, 1 / ratio):.2f}"
    return ""


def _take_away(line: list[str], home: Path, log: object) -> int:
    """Start a run, end it as a cloud does, in the middle, and hold it to what the page says: exit code 143."""
    with subprocess.Popen(line, cwd=home, stdout=log, stderr=log) as process:
        time.sleep(TAKEN_AWAY)
        process.terminate()
    return 0 if process.returncode == 143 else 1


def _ask_once(line: list[str], home: Path, log: object) -> int:
    """Start a server, get its page, and end it as Ctrl-C does."""
    with subprocess.Popen(line, cwd=home, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        for said in process.stdout or ():
            if address := re.search(r"http://\S+?:\d+/?", said):
                with urllib.request.urlopen(address[0], timeout=60) as page:
                    page.read()
                process.send_signal(signal.SIGINT)  # what it says then is read, too
    return process.returncode


if __name__ == "__main__":
    main()
