"""The runs in a folder: what each is made from, how far it came and how good it is."""

import contextlib
import csv
import dataclasses
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


@dataclass(frozen=True)
class Score:
    """How good a finished run is.

    Args:
        part: which images its accuracy is of: `test`; `val` where there are none; or `cv`, all, cross-validated.
        images: how many.
        accuracy: with `low` and `high`.
        validation: accuracy of the network that training chose; None if it was cross-validated.
        seconds: in all.
    """

    part: Literal["test", "val", "cv"]
    images: int
    accuracy: dict[str, float]
    validation: dict[str, float] | None
    seconds: float


@dataclass(frozen=True, eq=False)
class Run:
    """A run, or the cross-validation of one, and as much of it as can be read.

    Args:
        folder: its own.
        status: `running` if a process holds its lock, `damaged` if a file of it is not whole.
        why: of all but finished ones, how far it came or what is wrong.
        config: its settings.
        chosen: settings that cross-validation chose.
        history: one row an epoch, numbers by column of history.csv.
        score: of a finished run.
        predictions: of a finished run, on the images that it was measured on.
        split: digest of its images and their parts; empty if it did not come so far.
    """

    folder: Path
    status: Status
    why: str = ""
    config: Config | None = None
    chosen: frozenset[str] = frozenset()
    history: Sequence[dict[str, float]] = ()
    score: Score | None = None
    predictions: Predictions | None = field(default=None, repr=False)
    split: str = ""

    def columns(self) -> dict[str, Any]:
        """What a table shows, None where it is unknown; JSON-ready. Accuracies have `value`, `low` and `high`."""
        score, model = self.score, self.folder / "model.keras"
        return {
            "run": runs.legible(self.folder.name),
            "status": self.status,
            "date": self.date(),
            "data": self.config and _data_name(self.config.data.path),
            "network": self.config and self.config.backbone.name,
            **({name: None for name in Score.__dataclass_fields__} if score is None else dataclasses.asdict(score)),
            "size": model.stat().st_size if model.is_file() else None,
        }

    def date(self) -> str:
        """When it began, to the minute in local time: its name says so; else when its recipe was written."""
        with contextlib.suppress(ValueError):
            return time.strftime("%Y-%m-%d %H:%M", time.strptime(self.folder.name[:15], "%Y%m%d-%H%M%S"))
        recipe = self.folder / "config.toml"
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(recipe.stat().st_mtime))


def find(places: Iterable[Path]) -> list[Run]:
    """The runs in folders of runs; a place may be a run itself. What is no run, or a study, is passed over.

    Returns:
        Each once, in the order in which they began.

    Raises:
        OSError: if a place is no folder that can be read.
    """
    folders: dict[Path, Path] = {}
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
        if score := _score(folder):
            predictions = Predictions.load(folder / "predictions.npz")
            return Run(folder, "finished", score=score, predictions=predictions, **known)
    except (disk.DamagedError, OSError) as error:
        return Run(folder, "damaged", str(error), **known)
    folds, epochs = len(list(folder.glob("fold-*/fold.json"))), len(known["history"])
    came = f"after fold {folds}" if folds else f"after epoch {epochs}" if epochs else "before its first epoch"
    return Run(folder, "running" if disk.in_use(folder) else "interrupted", came, **known)


def _score(folder: Path) -> Score | None:
    """Of a run that is finished: from its last file to be written one knows that all the others were."""
    file, whole, model = folder / "metrics.json", folder / "cross_validation.json", folder / "model.keras"
    try:
        if file.is_file():
            if not zipfile.is_zipfile(model):
                raise disk.DamagedError(f"{str(model)!r} is {'damaged' if model.exists() else 'missing'}.")
            found = runs.read_json(file)
            part: Literal["test", "val"] = "test" if found["test"] else "val"
            return _checked(part, found[part], found["val"]["accuracy"], found["seconds"]["total"])
        if whole.is_file():
            found = runs.read_json(file := whole)
            return _checked("cv", found, None, found["seconds"])
    except (KeyError, TypeError) as error:
        raise disk.DamagedError(f"{str(file)!r} is damaged: it lacks {error}.") from error
    return None


def _floats(interval: dict) -> dict[str, float]:
    return {key: float(interval[key]) for key in ("value", "low", "high")}


def _checked(part: Literal["test", "val", "cv"], scores: dict, validation: dict | None, seconds: float) -> Score:
    accuracy = _floats(scores["accuracy"])
    held_out = None if validation is None else _floats(validation)
    return Score(part, int(scores["images"]), accuracy, held_out, float(seconds))


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
    """Whether it is one, and not the many of a study of tune.py."""
    return (folder / "config.toml").is_file() and not (folder / "study.json").exists()


def _data_name(path: str) -> str:
    """The last part of a path, which may be of another system; what is no path stays as it is."""
    return path if path.startswith("tfds:") else runs.legible(path.replace("\\", "/").rstrip("/").rpartition("/")[2])
