"""Runs in a table: sorted, filtered, and with the settings in which they differ."""

import dataclasses
import fnmatch
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .. import config as configuration
from .. import runs
from ..config import Config, Stage
from ..evaluate.intervals import percent
from .read import STATUSES, Run

COLUMNS = ("run", "status", "date", "data", "network", "accuracy", "part", "images", "validation", "seconds", "size")
"""What runs can be sorted and filtered by, besides settings."""
DESCENDING = {"accuracy", "date", "validation", "images"}
"""Of these, the greatest come first."""
PLACES = {"data.path", "data.cache"}
"""Settings that say where files are, which changes nothing in a result."""
RECIPES = Path(__file__).parents[2] / "configs"


def check_key(key: str) -> str:
    """A column or a setting by the name that it has today.

    Raises:
        ConfigError: if there is neither.
    """
    if key in COLUMNS:
        return key
    try:
        return configuration.check_key(key)
    except configuration.ConfigError as error:
        raise configuration.ConfigError(f"{error} Or a column: {', '.join(COLUMNS)}.") from None


def keep(found: Iterable[Run], filters: Iterable[str]) -> list[Run]:
    """The runs that pass all filters.

    Args:
        found: runs.
        filters: `key=value` each, of a column or a setting; the value may have the wildcards * ? [].

    Raises:
        ConfigError: if a filter is of another form, or there is no such key or status.
    """
    kept = list(found)
    for text in filters:
        key, equals, value = text.partition("=")
        if not equals:
            raise configuration.ConfigError(f"Expected key=value, such as backbone.name=mobilenet. Received: {text!r}")
        key = check_key(key)
        if key == "status" and not fnmatch.filter(STATUSES, value):
            raise configuration.ConfigError(f"status: expected {' | '.join(STATUSES)}. Received: {value!r}")
        kept = [run for run in kept if fnmatch.fnmatchcase(_text(_value(run, key)), value)]
    return kept


def ordered(found: Iterable[Run], key: str, *, reverse: bool = False) -> list[Run]:
    """Sorted: the newest or best, or the smallest or first, on top; those without a value come last.

    Args:
        found: runs.
        key: a column or a setting.
        reverse: the other way round.

    Raises:
        ConfigError: if there is no such key.
    """
    key = check_key(key)
    pairs = [(_value(run, key), run) for run in found]
    known = [(value, run) for value, run in pairs if value is not None]
    numbers = all(isinstance(value, (int, float)) for value, _ in known)
    known.sort(key=lambda pair: pair[0] if numbers else _text(pair[0]), reverse=reverse != (key in DESCENDING))
    return [run for _, run in known] + [run for value, run in pairs if value is None]


def settings(run: Run) -> dict[str, Any]:
    """Every setting of a run but places, by its dotted key; a stage as one text, as its recipe has it."""
    if run.config is None:
        return {}
    flat = configuration.flat(dataclasses.replace(run.config, stages=None))
    flat = {key: value for key, value in flat.items() if key not in PLACES | {"stages"}}
    return flat | {f"stages.{number}": _stage(stage) for number, stage in enumerate(run.config.stages or ())}


def differing(found: Sequence[Run]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs: their values in the order of the runs, None where one has none."""
    every = [settings(run) for run in found if run.config]
    keys = dict.fromkeys(key for each in every for key in each)
    unlike = [key for key in keys if any(each.get(key) != every[0].get(key) for each in every)]
    return {key: [settings(run).get(key) for run in found] for key in unlike}


def changed(run: Run) -> dict[str, Any]:
    """Settings of a run that are not those of the recipe that its images would have by default."""
    if run.config is None:
        return {}
    recipe = RECIPES / ("digits.toml" if run.config.data.path == "digits" else "folder.toml")
    usual = settings(Run(Path(), "finished", config=configuration.load(recipe) if recipe.is_file() else Config()))
    return {key: value for key, value in settings(run).items() if usual.get(key) != value}


def words(run: Run, values: dict[str, Any]) -> str:
    """Settings on one line; behind those that cross-validation chose it says so."""
    stages = "stages" in run.chosen
    marks = {key: " (chosen)" if key in run.chosen or stages and key.startswith("stages.") else "" for key in values}
    return ", ".join(f"{key}={_text(value)}{marks[key]}" for key, value in values.items())


def as_json(found: Sequence[Run]) -> list[dict[str, Any]]:
    """Columns of each run; `folder`, `path` of its data, `why`; and `changed`, `differing` and `chosen` settings."""
    unlike = differing(found)
    return [
        {
            "folder": str(run.folder),
            "path": run.config and run.config.data.path,
            **run.columns(),
            "why": run.why,
            "changed": changed(run),
        }
        | {"differing": {key: values[place] for key, values in unlike.items()}, "chosen": sorted(run.chosen)}
        for place, run in enumerate(found)
    ]


def lines(found: Sequence[Run]) -> list[str]:
    """The table for a terminal: a line for each run, and one of the settings that are not those of its recipe.

    Those that all runs share come once, at the end.
    """
    rows = [_cells(run) for run in found]
    widths = [max(map(len, column)) for column in zip(*(row[:4] for row in rows), strict=True)]  # of what all have
    whole = [row[4:] for row in rows if len(row) > 5]
    widths += [max(map(len, column)) for column in zip(*whole, strict=True)] or [0]
    own, unlike, result = [changed(run) for run in found], differing(found), []
    for run, row, values in zip(found, rows, own, strict=True):
        result.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())
        shown = {key: value for key, value in values.items() if key in unlike or len(found) == 1}
        result += [f"    {words(run, shown)}"] if shown else []
    shared = {key: value for values in own for key, value in values.items() if key not in unlike}
    if shared and len(found) > 1:
        result.append(f"and in all of them: {words(next(run for run in found if run.config), shared)}")
    return [*result, "(settings: those that are not as in the recipe that comes with the project)"]


def _cells(run: Run) -> list[str]:
    row = run.columns()
    left = [row["run"], row["date"], row["data"] or "?", row["network"] or "?"]
    if run.score is None:
        return [*left, f"{run.status}: {runs.legible(run.why.partition(chr(10))[0])}"]
    validation = f"val {100 * row['validation']['value']:.1f} %" if run.score.part == "test" else ""
    size = f"{row['size'] / 1e6:.1f} MB" if row["size"] else ""
    return [
        *left,
        percent(row["accuracy"]),
        f"of {row['images']} {row['part']}",
        validation,
        f"{row['seconds']:,.0f} s",
        size,
    ]


def _value(run: Run, key: str) -> Any:
    """Of a column or a setting; of an accuracy, without its interval."""
    if key in COLUMNS:
        value = run.columns()[key]
        return value["value"] if isinstance(value, dict) else value
    return configuration.flat(run.config).get(key) if run.config else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _stage(stage: Stage) -> str:
    """What is unfrozen, how long and how fast, and whatever else is not as it is by default."""
    usual, always = Stage(), {"unfreeze", "epochs", "learning_rate"}
    values = dataclasses.asdict(stage).items()
    return " ".join(f"{name}={value}" for name, value in values if name in always or getattr(usual, name) != value)
