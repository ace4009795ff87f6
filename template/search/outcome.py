"""What a search has found: the best recipe, how much of its lead is luck, a table, and Optuna's plots."""

import csv
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
import optuna
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as drawn

from .. import config as configuration
from .. import runs
from ..evaluate import plots
from ..evaluate.optimism import corrected
from .tune import Search, groups_of


def conclude(found: Search) -> dict[str, Any] | None:
    """Write best.toml, trials.csv, tune.json and plots, and say honestly what was gained.

    Returns:
        What is in tune.json: `trials` by state, `best` (number, settings, loss and accuracy), `default` (likewise), and
        of `corrected` the `loss` and the `accuracy`, whose gains are positive where the search was of use. None if the
        recipe as it is has not been tried to its end.
    """
    trials = found.study.trials
    runs.write_text(found.folder / "trials.csv", _table(trials))
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    default = next((row for row, trial in enumerate(done) if "default" in trial.user_attrs), None)
    if default is None:
        print("The recipe as it is has not been tried to its end: there is nothing to compare with. Go on.")
        return None
    groups, losses = groups_of(found), np.array([trial.user_attrs["losses"] for trial in done])
    errors = 1 - np.array([trial.user_attrs["correct"] for trial in done], float)
    loss = corrected(losses, default, groups=groups)
    best = done[loss["best"]]
    result = {
        "trials": {state.name.lower(): sum(trial.state == state for trial in trials) for state in TrialState},
        "best": _of(best),
        "default": _of(done[default]),
        "loss": loss,
        "accuracy_gain": corrected(errors, default, groups=groups, by=losses)["gain"],
    }
    config = configuration.load(found.base, best.user_attrs["settings"])
    runs.write_text(found.folder / "best.toml", configuration.to_toml(config))
    runs.write_json(found.folder / "tune.json", result)
    with matplotlib.rc_context():  # Optuna sets a style of its own
        for name, figure in _figures(found.study, len(done)).items():
            plots.save(figure, found.folder / f"{name}.png")
            plt.close(figure)
    _print_summary(result)
    return result


def _of(trial: FrozenTrial) -> dict[str, Any]:
    correct = trial.user_attrs["correct"]
    settings = trial.user_attrs["settings"]
    return {"trial": trial.number, "settings": settings, "loss": trial.value, "accuracy": float(np.mean(correct))}


def _print_summary(result: dict[str, Any]) -> None:
    """In words, what the search came to."""
    best, default, loss = result["best"], result["default"], result["loss"]
    counts = ", ".join(f"{count} {state}" for state, count in result["trials"].items() if count)
    gain, accuracy = loss["gain"], result["accuracy_gain"]
    print(f"\n{counts}")
    for name, one in (("the recipe as it is", default), (f"the best, trial {best['trial']}", best)):
        print(f"  {name:<24} out-of-fold loss {one['loss']:.4f}, accuracy {one['accuracy']:.3f}")
    print(
        f"  apparent gain of loss {_interval(loss['apparent_gain'])}; the best of many is partly luck: of that "
        f"{loss['optimism']:.4f} is optimism\n  gain on images that did not select: loss {_interval(gain)}, "
        f"accuracy {_interval(accuracy)}"
    )
    if gain["low"] > 0:
        print("A real gain: the whole interval is above zero.")
    else:
        print("No real gain: the interval holds zero. Keep the recipe as it is, or search on.")


def _interval(gain: dict[str, float]) -> str:
    return f"{gain['value']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"


def _table(trials: Sequence[FrozenTrial]) -> str:
    """All trials, a line each."""
    keys = sorted({key for trial in trials for key in trial.params})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial", "state", "loss", "accuracy", "seconds", *keys, "reason"])
    for trial in trials:
        correct, seconds = trial.user_attrs.get("correct"), trial.duration and trial.duration.total_seconds()
        complete = trial.state == TrialState.COMPLETE
        row = [trial.number, trial.state.name.lower(), trial.value if complete else None]
        row += [np.mean(correct).round(4) if correct else None, seconds, *(trial.params.get(key) for key in keys)]
        writer.writerow([*row, trial.user_attrs.get("reason", "")])
    return out.getvalue()


def _figures(study: optuna.Study, complete: int) -> dict[str, Figure]:
    """Optuna's plots of the history, of each setting, and, with enough trials, of what mattered."""
    found: dict[str, Callable[[optuna.Study], Any]] = {
        "history": drawn.plot_optimization_history,
        "slices": drawn.plot_slice,
    }
    found |= {"importance": drawn.plot_param_importances} if complete >= 10 else {}
    figures = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are experimental
        for name, draw in found.items():
            axes = np.atleast_1d(draw(study)).flat[0]
            figures[name] = axes.figure
    return figures
