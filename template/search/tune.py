"""Search for a better recipe with Optuna: the objective is the out-of-fold loss of `cross_validate.predict_fold`.

All that a study knows is in its storage (settings, losses of every image, why a trial failed), so that any number of
processes, on one machine or several, work on it, and a new one goes on where all others ended.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import optuna
import tensorflow as tf
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from .. import config as configuration
from .. import disk, messages, progress, recipe, runs, system
from .. import suggest as suggestions
from ..config import Config, ConfigError
from ..data.examples import DataError
from ..data.load import Parts, load_data
from ..data.split import to_csv
from ..evaluate.calibration import smoothed_losses
from ..evaluate.intervals import paired_z
from ..evaluate.predictions import Predictions
from ..model.weights import WeightsError
from ..model_selection.auto import starts_from_probe, without_auto
from ..train.features import FeatureCache
from ..train.nonfinite import NonFiniteError
from ..train.select import per_image_losses
from .cross_validate import pool_folds, predict_fold, split_into_folds
from .space import Space, suggest, within

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
FAILURES = (ConfigError, WeightsError, NonFiniteError, MemoryError, tf.errors.ResourceExhaustedError)
"""Errors of a trial; any other is one of the whole search, and ends it."""
QUICK = ("train.refit_on_train_val=no", "tta.full_image=false", "tta.hflip=false")
"""What a search has no time for; it makes all recipes better alike."""
BLOCKS = 10
"""Mean losses of so many parts of a fold are what the pruner compares, in pairs."""
CLEARLY = 2.0
"""Standard errors by which the linear probe of a trial must be behind that of the best one for the trial to end."""


@dataclass(frozen=True)
class Search:
    """What every trial needs.

    Args:
        study: of Optuna.
        base: the recipe to change, in a file.
        space: what to change.
        parts: the images.
        folds: from `split_into_folds`.
        cache: for features.
        folder: for what is written.
        probes: losses of the linear probes that were tried here, by their recipe.
    """

    study: optuna.Study
    base: Path
    space: Space
    parts: Parts
    folds: Sequence[Parts]
    cache: FeatureCache
    folder: Path
    probes: dict[str, np.ndarray] = field(default_factory=dict)

    def load(self, overrides: Sequence[str]) -> Config:
        """The recipe with these settings; quick, unless they say otherwise."""
        return configuration.load(self.base, [*QUICK, *overrides])


def open_study(storage: str, name: str) -> optuna.Study:
    """The study of this name, made if it is not there.

    Args:
        storage: address of a database, or a journal file, which any number of processes may write to.
        name: of the study.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():  # heartbeat and pruner are experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        kept: optuna.storages.BaseStorage
        if "://" in storage:
            kept = optuna.storages.RDBStorage(storage, heartbeat_interval=60)
        else:
            lock = JournalFileOpenLock(storage) if system.WINDOWS else None  # else a link, which takes a right
            kept = optuna.storages.JournalStorage(JournalFileBackend(storage, lock))
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=0.1)
    sampler = optuna.samplers.TPESampler(multivariate=True)
    return optuna.create_study(
        storage=kept, study_name=name, sampler=sampler, pruner=pruner, direction="minimize", load_if_exists=True
    )


def open_search(config: Config, space: Space, study: optuna.Study, folds: tuple[int, int], folder: Path) -> Search:
    """Load the images, let the recipe choose what it leaves open, once for the study, and divide the images.

    Args:
        config: of the recipe. Its test part is left alone.
        space: what to change.
        study: from `open_study`.
        folds: how many, and how often.
        folder: of this process.

    Raises:
        DataError: if the images are not those of the study.
    """
    messages.print_device(config)
    cache = FeatureCache.of(config)
    config, parts = load_data(config, without_auto(config).data)
    messages.print_found(config, parts, folder)
    divisions = split_into_folds(parts, config.data, *folds)
    digest = hashlib.sha256(to_csv(parts.examples).encode()).hexdigest()
    if study.user_attrs.get("images", digest) != digest:
        raise DataError("The images are not those that this study began with. Put them back, or start a new study.")
    if "recipe" not in study.user_attrs:
        print("what the recipe leaves open is chosen once, by its training part:")
        begun = recipe.prepare(config, parts, cache, folder / "default")
        if "recipe" not in study.user_attrs:  # another process may have been faster
            study.set_user_attr("images", digest)
            study.set_user_attr("recipe", configuration.to_toml(begun.config))
    base = folder / "default.toml"
    runs.write_text(base, study.user_attrs["recipe"])
    local = dataclasses.replace(configuration.load(base).data, path=config.data.path, cache=config.data.cache)
    here = dataclasses.replace(configuration.load(base), data=local)
    runs.write_text(base, configuration.to_toml(here))
    return Search(study, base, space, parts, divisions, cache, folder)


def search(found: Search, seconds: float | None, trials: int | None) -> None:
    """Try recipes until the time is over or the study has so many trials; the first is the recipe as it is."""
    fail_abandoned(found)
    if not any("default" in trial.user_attrs and trial.state not in ENDED[1:] for trial in found.study.trials):
        known = within(found.space, configuration.flat(found.load([])))
        found.study.enqueue_trial(known, user_attrs={"default": sorted(known)})

    def print_trial(study: optuna.Study, trial: FrozenTrial) -> None:
        print(describe(trial), flush=True)
        if trials and len(study.get_trials(deepcopy=False, states=ENDED)) >= trials:
            study.stop()

    if trials and len(found.study.get_trials(deepcopy=False, states=ENDED)) >= trials:
        return
    run = functools.partial(objective, found=found)
    with progress.step("search"):
        found.study.optimize(run, timeout=seconds, catch=FAILURES, callbacks=[print_trial], gc_after_trial=True)


def fail_abandoned(found: Search) -> None:
    """Trials that a killed process left behind are failed. Databases know them by their heartbeat."""
    for trial in found.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        place = found.folder / "trials" / str(trial.number)
        with contextlib.suppress(disk.DiskError):
            if place.exists():
                with contextlib.redirect_stdout(io.StringIO()), disk.locked(place):
                    found.study.tell(trial.number, state=TrialState.FAIL)
                print(f"trial {trial.number}: lost with its process, which was killed")
                shutil.rmtree(place)


def objective(trial: Trial, found: Search) -> float:
    """Mean out-of-fold loss of a recipe.

    Raises:
        optuna.TrialPruned: if it is clearly worse than the best one so far.
        Those of `FAILURES`: whose message becomes the `reason` of the trial.
    """
    place = found.folder / "trials" / str(trial.number)
    try:
        with disk.locked(place), contextlib.redirect_stdout(io.StringIO()):
            return _objective(trial, found, place)
    except FAILURES as error:
        trial.set_user_attr("reason", f"{type(error).__name__}: {error}"[:500])
        raise
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _objective(trial: Trial, found: Search, place: Path) -> float:
    if "default" in trial.user_attrs:  # what it has in common with the space, the sampler may know
        suggest(trial, {key: found.space[key] for key in trial.user_attrs["default"]}, found.load)
        overrides = []
    else:
        overrides = suggest(trial, found.space, found.load)
    trial.set_user_attr("settings", overrides)
    config = found.load(overrides)
    if starts_from_probe(config) and config.stages:
        _race_probes(trial, suggestions.of_probe(config), found, place)
    folds = []
    for number, fold in enumerate(_folds(config, found, place)):
        folds.append(fold)
        losses = per_image(pool_folds([fold]), config)
        for block, part in enumerate(np.array_split(losses, min(BLOCKS, len(losses)))):
            trial.report(float(part.mean()), number * BLOCKS + block)
        if trial.should_prune() and number + 1 < len(found.folds):
            trial.set_user_attr("reason", f"clearly worse after {number + 1} of {len(found.folds)} folds")
            raise optuna.TrialPruned
    pooled = pool_folds(folds)
    losses = per_image(pooled, config)
    trial.set_user_attr("losses", np.round(losses, 6).tolist())
    trial.set_user_attr("correct", (pooled.predicted == pooled.labels).astype(int).tolist())
    return float(losses.mean())


def _race_probes(trial: Trial, config: Config, found: Search, place: Path) -> None:
    """The linear probe, in seconds, before anything trains: whose is clearly worse than that of the best trial ends."""
    key = configuration.to_toml(config)
    if key not in found.probes:
        found.probes[key] = per_image(pool_folds(list(_folds(config, found, place))), config)
    losses = found.probes[key]
    trial.set_user_attr("probe", np.round(losses, 6).tolist())
    done = found.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best = min((t for t in done if "probe" in t.user_attrs), key=lambda t: t.value or 0.0, default=None)
    if best and paired_z(np.array(best.user_attrs["probe"]), losses, groups=groups_of(found)) > CLEARLY:
        trial.set_user_attr("reason", "its linear probe is clearly worse than that of the best")
        raise optuna.TrialPruned


def _folds(config: Config, found: Search, place: Path) -> Iterator[tuple[Predictions, float]]:
    """Predictions and temperature of one fold after the other."""
    for fold in found.folds:
        predictions, temperature, _ = predict_fold(config, fold, found.cache, place / "fold")
        shutil.rmtree(place / "fold")
        yield predictions, temperature


def per_image(predictions: Predictions, config: Config) -> np.ndarray:
    """Loss of each image by `train.monitor`.

    The cross-entropy of calibrated predictions is smoothed: one error that was very sure would outweigh all else.
    """
    if config.train.monitor == "cross_entropy":
        return smoothed_losses(predictions.logits, predictions.labels)
    return per_image_losses(predictions.logits, predictions.labels, config.train.monitor)


def groups_of(found: Search) -> np.ndarray:
    """What belongs together, in the order of the losses of a trial; int64 [n]."""
    return np.concatenate([fold.groups[fold.rows("test")] for fold in found.folds])


def describe(trial: FrozenTrial) -> str:
    """A trial in a line."""
    words = {TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}.get(trial.state, "")
    loss = f"loss {trial.value:.4f}" if trial.state == TrialState.COMPLETE else words
    seconds = f"{trial.duration.total_seconds():.0f} s" if trial.duration else ""
    listed = (
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in trial.params.items()
    )
    settings = "the recipe as it is" if "default" in trial.user_attrs else " ".join(listed)
    reason = trial.user_attrs.get("reason", "")
    return f"trial {trial.number}: {loss}, {seconds}  {settings}{f'  ({reason})' * bool(reason)}"
