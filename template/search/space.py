"""What a search may change: `[tune.space]` of a recipe, a range or a list of options for a setting.

[tune.space]
"head.dropout" = {low = 0.0, high = 0.6}
"stages.0.learning_rate" = {low = 1e-5, high = 1e-2, log = true}
"backbone.name" = ["mobilenet", "efficientnet_lite0"]
"""

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from ..config import Config, ConfigError, flat

FIXED = (
    "data.path", "data.cache", "data.cache_gb", "data.memory_gb", "data.test_fraction", "data.split_seed",
    "train.monitor", "train.refit_on_train_val", "train.checkpoint_seconds", "evaluate.",
)  # fmt: skip
"""Settings, or beginnings of such, that say what is measured or how it is stored: another value, another number."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class Range:
    """Numbers from low to high, both included; evenly by their logarithm, or in steps."""

    low: float | int
    high: float | int
    log: bool = False
    step: float | int | None = None

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low must be below high; received {self.low} and {self.high}")
        if self.log and (self.low <= 0 or self.step):
            raise ValueError("log needs low above 0, and no step")
        return self


Options = Annotated[tuple[bool | int | float | str, ...], Field(min_length=2)]
Space = dict[str, Range | Options]
Loader = Callable[[Sequence[str]], Config]
"""From `section.field=value` texts to the recipe with these settings; raises ConfigError."""


def read_space(recipe: Path, load: Loader) -> Space:
    """The space of a recipe, each end and option of which is a value that the setting can have.

    Args:
        recipe: TOML with `[tune.space]`.
        load: of the same recipe.

    Raises:
        ConfigError: if there is none, a setting does not exist or must not be searched, or a value is out of its range.
    """
    tune = tomllib.loads(recipe.read_text(encoding="utf-8")).get("tune", {})
    if set(tune) != {"space"} or not tune["space"]:
        raise ConfigError(f"Expected [tune.space] with settings in {str(recipe)!r}, as in configs/tune.toml.")
    space: Space = {}
    for key, given in tune["space"].items():
        if key.startswith(FIXED):
            raise ConfigError(f"tune.space: {key} says what is measured or how it is stored; it cannot be searched.")
        try:
            space[key] = TypeAdapter(Range | Options).validate_json(json.dumps(given), strict=True)
        except ValidationError as error:
            why = next((str(e["ctx"]["error"]) for e in error.errors() if e["type"] == "value_error"), "")
            expected = why or "{low=..., high=...}, with log=true or step=..., or a list of two or more options"
            raise ConfigError(f"tune.space: {key}: expected {expected}. Received: {given!r}") from None
        for value in _values(space[key]):
            try:
                load([override(key, value)])
            except ConfigError as error:
                raise ConfigError(f"tune.space: {error}") from None
    return space


def suggest(trial: Any, space: Space, load: Loader) -> list[str]:
    """What Optuna suggests for a trial, as `section.field=value` texts.

    Args:
        trial: `optuna.Trial`.
        space: from `read_space`.
        load: of the recipe, to see whether a setting is a whole number.
    """
    found = []
    for key, given in space.items():
        if isinstance(given, tuple):
            value = trial.suggest_categorical(key, given)
        elif isinstance(flat(load([override(key, given.low)]))[key], int):
            value = trial.suggest_int(key, given.low, given.high, log=given.log, step=given.step or 1)
        else:
            value = trial.suggest_float(key, given.low, given.high, log=given.log, step=given.step)
        found.append(override(key, value))
    return found


def within(space: Space, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings, by dotted key, that the space holds."""
    found = {key: settings[key] for key in space if settings.get(key) is not None}
    return {key: value for key, value in found.items() if _holds(space[key], value)}


def override(key: str, value: Any) -> str:
    """`section.field=value`, as a command line has it."""
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def _holds(given: Range | Options, value: Any) -> bool:
    if isinstance(given, tuple):
        return value in given
    return isinstance(value, int | float) and given.step is None and given.low <= value <= given.high


def _values(given: Range | Options) -> tuple[Any, ...]:
    """All options; of a range the ends and a number between, for settings that have few."""
    if isinstance(given, tuple):
        return given
    between = (given.low + given.high) / 2
    whole = isinstance(given.low, int) and isinstance(given.high, int)
    return given.low, int(between) if whole else between, given.high
