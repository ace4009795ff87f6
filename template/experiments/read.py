"""The runs in a folder: what each is made from, how far it came and how good it is."""

import contextlib
import csv
import io
import time
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .. import config as configuration
from .. import disk, runs
from ..config import Config
from ..evaluate.predictions import Predictions

Status = Literal["finished", "running", "interrupted", "damaged"]
STATUSES: tuple[Status, ...] = ("finished", "running", "interrupted", "damaged")


@dataclass(frozen=True, eq=False)
class Run:
    """A run, and as much of it as can be read.

    Args:
        folder: its own.
        status: `running` if a process holds its lock, `damaged` if a file of it is not whole.
        why: of all but finished ones, how far it came or what is wrong.
        config: its settings.
        chosen: settings that cross-validation chose.
        history: one row an epoch, numbers by column of history.csv.
        metrics: of a finished run, as in metrics.json.
        predictions: of a finished run, on the images that it was measured on.
        split: digest of its images and their parts; empty if it did not come so far.
    """

    folder: Path
    status: Status
    why: str = ""
    config: Config | None = None
    chosen: frozenset[str] = frozenset()
    history: Sequence[dict[str, float]] = ()
    metrics: dict[str, Any] | None = field(default=None, repr=False)
    predictions: Predictions | None = field(default=None, repr=False)
    split: str = ""

    @property
    def part(self) -> str | None:
        """Which images its accuracy is of: `test`, or where there are none, `val`."""
        return None if self.metrics is None else "test" if self.metrics["test"] else "val"

    def columns(self) -> dict[str, Any]:
        """What a table shows, None where it is unknown; JSON-ready. Accuracies have `value`, `low` and `high`."""
        known, model = self.metrics, self.folder / "model.keras"
        return {
            "run": runs.legible(self.folder.name),
            "status": self.status,
            "date": self.date(),
            "data": self.config and _data_name(self.config.data.path),
            "network": self.config and self.config.backbone.name,
            "accuracy": known and known[self.part]["accuracy"],
            "part": self.part,
            "images": known and known[self.part]["images"],
            "validation": known and known["val"]["accuracy"],
            "seconds": known and known["seconds"]["total"],
            "size": model.stat().st_size if model.is_file() else None,
        }

    def date(self) -> str:
        """When it began, to the minute in local time: its name says so; else when its recipe was written."""
        with contextlib.suppress(ValueError):
            return time.strftime("%Y-%m-%d %H:%M", time.strptime(self.folder.name[:15], "%Y%m%d-%H%M%S"))
        recipe = self.folder / "config.toml"
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(recipe.stat().st_mtime))


def find(places: Iterable[Path]) -> list[Run]:
    """The runs in folders of runs; a place may be a run itself. What is no run is passed over.

    Returns:
        Each once, in the order in which they began.

    Raises:
        OSError: if a place is no folder that can be read.
    """
    folders = {}
    for place in places:
        for folder in [place] if _is_run(place) else filter(_is_run, place.iterdir()):
            folders.setdefault(folder.resolve(), folder)
    return sorted(map(read, folders.values()), key=lambda run: (run.date(), run.folder.name))


def read(folder: Path) -> Run:
    """Read a run, whatever state it is in."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # settings of earlier versions: it is known what they are now
            config = configuration.load(folder / "config.toml")
    except configuration.ConfigError as error:
        return Run(folder, "damaged", str(error))
    known: dict[str, Any] = {"config": config}
    try:
        known["chosen"] = frozenset(_optional(folder / "choices.json"))
        known["split"] = _optional(folder / "run.json").get("split_sha256", "")
        known["history"] = _history(folder / "history.csv")
        if (folder / "metrics.json").is_file():
            known |= _result(folder)
            return Run(folder, "finished", **known)
    except (disk.DamagedError, OSError) as error:
        return Run(folder, "damaged", str(error), **known)
    came = f"after epoch {len(known['history'])}" if known["history"] else "before its first epoch"
    return Run(folder, "running" if disk.in_use(folder) else "interrupted", came, **known)


def _result(folder: Path) -> dict[str, Any]:
    """What only a finished run has; from its last file to be written one knows that all the others were."""
    metrics, model = runs.read_json(folder / "metrics.json"), folder / "model.keras"
    try:
        for part in filter(None, (metrics["test"], metrics["val"])):
            part["images"], [part["accuracy"][key] for key in ("value", "low", "high")]
        metrics["seconds"]["total"], metrics["val"]["accuracy"]
    except (KeyError, TypeError) as error:
        raise disk.DamagedError(f"{str(folder / 'metrics.json')!r} lacks {error}.") from error
    if not zipfile.is_zipfile(model):
        raise disk.DamagedError(f"{str(model)!r} is {'damaged' if model.exists() else 'missing'}.")
    return {"metrics": metrics, "predictions": Predictions.load(folder / "predictions.npz")}


def _history(file: Path) -> list[dict[str, float]]:
    if not file.is_file():
        return []
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            return [{name: float(text) for name, text in row.items()} for row in csv.DictReader(lines)]
    except (ValueError, TypeError) as error:
        raise disk.DamagedError(f"{str(file)!r} is damaged: {error}") from error


def _optional(file: Path) -> dict[str, Any]:
    found = runs.read_json(file) if file.is_file() else {}
    if not isinstance(found, dict):
        raise disk.DamagedError(f"{str(file)!r} is damaged: it holds no table.")
    return found


def _is_run(folder: Path) -> bool:
    return (folder / "config.toml").is_file()


def _data_name(path: str) -> str:
    """The last part of a path, which may be of another system; what is no path stays as it is."""
    return path if path.startswith("tfds:") else runs.legible(path.replace("\\", "/").rstrip("/").rpartition("/")[2])
