"""Every command of the README, in its order, on photographs of one's own: how it ended, and its seconds.

    python benchmarks/readme.py --images FOLDER --per-class 50 --out commands.md

FOLDER is one of class folders, of which some become `photos`, others of each class `other_photos`, `folder` and
`unlabelled`. Runs are written to a new folder beside --out, and kept. What asks a person (`annotate.py`, `serve.py`) is
asked for its page once. Ends with 1 if a command did not end well.
"""

import argparse
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
OTHERS = 20
"""Images of each class that are not trained on, and as many without labels."""

SERVERS = ("serve", "annotate")


def main() -> None:
    """Walk the README and write a table."""
    runs.any_terminal()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="class folders")
    parser.add_argument("--per-class", type=int, default=50, help="images of each class to train on (default: 50)")
    parser.add_argument("--seconds", type=int, default=1200, help="for tune.py (default: 1200, as the README has it)")
    parser.add_argument("--out", type=Path, default=Path("commands.md"), help="Markdown to write (commands.md)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background would ignore it
    home = arguments.out.resolve().with_suffix("")
    home.mkdir(parents=True)
    lay_out(arguments.images, home, arguments.per_class)
    rows, failed, trained = [], False, list[str]()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in commands(re.sub(r"--seconds \d+", f"--seconds {arguments.seconds}", readme)):
        code, seconds = walk(command, home, trained)
        failed |= code != 0
        rows.append(f"| `{command}` | {seconds:.0f} | {code} |")
        print(rows[-1], flush=True)
    table = ["| command | seconds | exit code |", "|---|---|---|", *rows]
    arguments.out.write_text("\n".join(table) + "\n", encoding="utf-8")
    sys.exit(failed)


def lay_out(images: Path, home: Path, per_class: int) -> None:
    """The folders and the image that the README speaks of."""
    for kind in sorted(path for path in images.iterdir() if path.is_dir()):
        files = iter(sorted(kind.iterdir()))
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


def commands(readme: str) -> Iterator[str]:
    """What the README tells to call, in its order; before two runs are compared, the training of the second."""
    for block in re.findall(r"^```\n(.*?)^```", readme, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            call = re.search(r"python scripts/[^#]*", line)
            if not call:
                continue
            if "compare.py" in line:
                yield "python scripts/train.py --data.path=photos --train.seed=1"
            yield call[0].strip()


def walk(command: str, home: Path, trained: list[str]) -> tuple[int, float]:
    """Call one: its exit code, and seconds.

    Args:
        command: as the README has it.
        home: the folder to call it in.
        trained: runs so far: that of the digits, that of the photographs, and others; those of this call are added.
    """
    for name, run in (("RUN", trained[1:2]), ("OTHER", trained[2:]), ("SAME_WITH_ANOTHER_SEED", trained[2:])):
        command = re.sub(rf"runs/{name}\b", "".join(f"runs/{one}" for one in run[:1]), command)
    _, script, *rest = shlex.split(command)
    before, start = set((home / "runs").glob("*")), time.monotonic()
    line = [sys.executable, str(ROOT / script), *rest]
    with (home / "output.txt").open("a", encoding="utf-8") as log:
        print(f"\n$ {command}", file=log, flush=True)
        if Path(script).stem in SERVERS:
            code = _ask_once(line, home, log)
        else:
            code = subprocess.run(line, cwd=home, stdout=log, stderr=log, check=False).returncode
    seconds = time.monotonic() - start
    if Path(script).stem == "train":
        trained += [run.name for run in {*(home / "runs").iterdir()} - before]
    return code, seconds


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
