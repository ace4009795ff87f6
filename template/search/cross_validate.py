"""Cross-validation of a whole recipe: every image is predicted by a network that has not seen it.

A fold chooses, trains and calibrates as a run does, by the images outside it alone. Folds share decoded images and the
features of frozen blocks, which know no labels.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from .. import config as configuration
from .. import disk, messages, progress, recipe, runs
from ..config import Config, Data
from ..data.audit.facts import facts_from_pixels
from ..data.examples import DataError
from ..data.load import Parts, load_data
from ..data.split import differences, split, to_csv
from ..evaluate.calibration import clear_temperature
from ..evaluate.cross_validation import publish
from ..evaluate.predictions import Predictions, pool
from ..model_selection.auto import without_auto
from ..train.distribute import on_devices
from ..train.features import FeatureCache
from ..train.linear_probe import folds as divide_rows


def cross_validate(config: Config, folder: Path, folds: int, repeats: int, clock: progress.Timer) -> dict[str, Any]:
    """Cross-validate a recipe, and write a report about it into a folder; goes on with the folds that are missing.

    Args:
        config: all settings. A test part, given or by `data.test_fraction`, is left alone.
        folder: for config.toml, folds.csv, a folder a fold, and predictions.npz, cross_validation.json and report.html
            of all together.
        folds: how many, unless a class has fewer images or groups.
        repeats: how often all images are divided; once for 1,000 images and more.
        clock: already running.

    Returns:
        What is in cross_validation.json.

    Raises:
        Exception: as `recipe.run`.
    """
    with recipe.writing(config, folder), on_devices(config.train):
        messages.print_device(config)
        cache = FeatureCache.of(config, clock)
        with clock("decode"):
            config, parts = load_data(config, without_auto(config).data)
        messages.print_found(config, parts, folder)
        divisions = split_into_folds(parts, config.data, folds, repeats)
        _refuse_changes(divisions, folder)
        with clock("audit"):
            pixels = parts.all_pixels(without_auto(config).data)
            facts = facts_from_pixels(parts.examples, pixels, np.arange(len(parts.examples)))
            messages.print_audit(parts.examples, facts, config, folder)
        found = []
        for number, part in enumerate(divisions, start=1):
            print(f"\nfold {number}/{len(divisions)}: {_sizes(part)}")
            found.append(_run_fold(config, part, cache, folder / f"fold-{number:02d}"))
        results = [result for result, _ in found]
        predictions, raw = pool_folds(results), pool_folds(results, calibrated=False)
        tables, times = [table for _, table in found], len(predictions.ids) // len(np.unique(predictions.ids))
        return publish(predictions, raw, tables, times, parts.examples.skipped, clock, folder)


def split_into_folds(parts: Parts, settings: Data, folds: int, repeats: int = 1) -> list[Parts]:
    """The training and validation images, divided anew for each fold: into `test`, and `train` and `val` of the rest.

    Args:
        parts: from `load_data`. Images of its test part are in none of the new ones.
        settings: share of validation, and seed.
        folds: how many, unless a class has fewer images or groups.
        repeats: how often, with 1,000 images or fewer.

    Raises:
        DataError: if a class has too few images.
    """
    rows = np.sort(np.concatenate([parts.rows("train"), parts.rows("val")]))
    pooled, labels, groups = parts.examples.take(rows), parts.examples.labels[rows], parts.groups[rows]
    classes = len(parts.examples.class_names)
    divisions = divide_rows(labels, classes, settings.split_seed, repeats, groups, folds)
    if not divisions:
        raise DataError(
            "Cross-validation is impossible: a class has a single image or group, which cannot be learned from and "
            "held out. Add images, or remove the class."
        )
    found = []
    for _, outside in divisions:
        held = np.full(len(rows), "", "U5")
        held[outside] = "test"
        again = dataclasses.replace(pooled, parts=held)
        again = split(again, val_fraction=settings.val_fraction, test_fraction=0.0, seed=settings.split_seed)
        where = np.full(len(parts.examples), "", "U5")
        where[rows] = again.parts
        found.append(dataclasses.replace(parts, examples=dataclasses.replace(parts.examples, parts=where), pool=rows))
    return found


def predict_fold(config: Config, parts: Parts, cache: FeatureCache, folder: Path) -> tuple[Predictions, float, Config]:
    """Train on the images outside a fold, and predict those in it, which are its `test`.

    Args:
        config: with or without `auto`.
        parts: one of `split_into_folds`.
        cache: for features.
        folder: of the fold; an interrupted training in it goes on.

    Returns:
        The predictions, not calibrated; the temperature that calibrates them, by the fold's own validation; and the
        settings that were chosen.
    """
    keras.backend.clear_session()
    begun = recipe.prepare(config, parts, cache, folder)
    *_, predictions = recipe.fit_and_predict(begun, folder)
    return predictions["test"], clear_temperature(predictions["val"]), begun.config


def pool_folds(folds: Sequence[tuple[Predictions, float]], *, calibrated: bool = True) -> Predictions:
    """Predictions of all folds, each at its own temperature.

    Where images are divided repeatedly, each prediction of one counts, and those of one image are a group: intervals
    are those of the images, and no mean over several networks looks better than one of them is.

    Args:
        folds: predictions and temperature of each, from `predict_fold`.
        calibrated: or at temperature 1.
    """
    times: dict[str, int] = {}
    named = []
    for predictions, temperature in folds:
        number = [times.get(name, 0) for name in predictions.ids]
        times |= {name: count + 1 for name, count in zip(predictions.ids, number, strict=True)}
        pairs = zip(predictions.ids, number, strict=True)
        ids = np.array([f"{name} (repeat {count + 1})" if count else str(name) for name, count in pairs])
        groups = predictions.ids if predictions.groups is None else predictions.groups
        scaled = predictions.scaled(temperature) if calibrated else predictions
        named.append(dataclasses.replace(scaled, ids=ids, groups=groups))
    pooled = pool(named)
    alone = max(times.values()) == 1 and folds[0][0].groups is None
    return dataclasses.replace(pooled, groups=None) if alone else pooled


def _run_fold(
    config: Config, parts: Parts, cache: FeatureCache, folder: Path
) -> tuple[tuple[Predictions, float], dict[str, Any]]:
    """Predictions and temperature of a fold, computed or from its folder, and its row of the report."""
    if (folder / "fold.json").exists():  # written last
        print(f"  finished before: {folder}")
        table = runs.read_json(folder / "fold.json")
        return (Predictions.load(folder / "predictions.npz"), table["temperature"]), table
    start, begun = time.perf_counter(), folder / "begun.toml"
    with disk.locked(folder):
        how = configuration.load(begun) if begun.exists() else config
        recipe.refuse_changes(how, parts, folder)
        predictions, temperature, chosen = predict_fold(how, parts, cache, folder)
        predictions.save(folder / "predictions.npz")
        accuracy = float((predictions.predicted == predictions.labels).mean())
        seconds = time.perf_counter() - start
        table = {"images": len(predictions.ids), "accuracy": accuracy, "temperature": temperature, "seconds": seconds}
        runs.write_json(folder / "fold.json", table | {"chosen": _chosen(config, chosen)})
    print(f"  accuracy {accuracy:.3f} on its {len(predictions.ids)} images, {seconds:.0f} s")
    return (predictions, temperature), runs.read_json(folder / "fold.json")


def _chosen(before: Config, after: Config) -> dict[str, Any]:
    """What a fold has chosen of what the settings left open."""
    old, new = configuration.flat(before), configuration.flat(after)
    found = {key: new[key] for key in old if old[key] == "auto" and new.get(key, "auto") != "auto"}
    unfrozen = ", ".join(str(stage.unfreeze) for stage in configuration.settled(after.stages)) or "none"
    return found | ({"blocks unfrozen": unfrozen} if before.stages is None else {})


def _refuse_changes(divisions: Sequence[Parts], folder: Path) -> None:
    """Folds that are finished are of the images that there are."""
    examples, file = divisions[0].examples, folder / "folds.csv"
    where = np.full(len(examples), "", "U12")
    for number, part in reversed(list(enumerate(divisions, start=1))):  # the first repeat stays
        where[part.rows("test")] = f"fold-{number:02d}"
    table = to_csv(dataclasses.replace(examples, parts=where))
    if file.exists() and (before := file.read_text(encoding="utf-8")) != table:
        listed = "\n  ".join(differences(before, table)[:10])
        raise DataError(
            f"The images have changed since the cross-validation in {str(folder)!r} began:\n  {listed}\n"
            "Put them back as they were and resume, or start a new one."
        )
    runs.write_text(file, table)


def _sizes(parts: Parts) -> str:
    """`160 train, 40 val, 50 held out`."""
    train, val, test = (len(parts.rows(name)) for name in ("train", "val", "test"))
    return f"{train} train, {val} val, {test} held out"


def refit(config: Config, folder: Path) -> dict[str, Any]:
    """Train one network on all images, in final/; its report carries the scores of the cross-validation.

    Args:
        config: of the cross-validation.
        folder: of the cross-validation, finished.

    Returns:
        The metrics of the run.
    """
    final = folder / "final"
    if (final / "metrics.json").exists():
        return runs.read_json(final / "metrics.json")
    print(f"\none network on all images: {final}")
    recorded = final / "config.toml"
    how = dataclasses.replace(config, train=dataclasses.replace(config.train, refit_on_train_val="yes"))
    how = configuration.load(recorded) if recorded.exists() else how
    runs.write_json(final / "cross_validation.json", runs.read_json(folder / "cross_validation.json"))
    return recipe.run(how, final)
