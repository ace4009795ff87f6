"""Checkpoints from which an interrupted training resumes: what a stage began with, and then what changed."""

import dataclasses
import hashlib
import json
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from .. import disk, progress, runs

Arrays = dict[str, list[np.ndarray]]

SINCE = {"model": "begun", "best": "before"}
"""What the arrays of a kind are compared with: only those that differ are written."""

RENAMED = {"blind": "nonfinite_epochs", "drops": "lr_drops", "watched": "prediction_dynamics", "share": "alpha"}
"""Names in checkpoints of versions before 0.2, and what they are now."""


@dataclass
class TrainState:
    """Progress of a training; with weights and optimizer, all that is needed to resume."""

    stage: int = 0
    """Stages finished."""
    epoch: int = 0
    """Epochs finished, over all stages."""
    start: int = 0
    """Epochs that were finished when this stage began."""
    best: float | None = None
    """Best validation score so far, over all stages."""
    best_epoch: int | None = None
    """Epochs finished when this stage reached it; None if it is from before the stage."""
    wait: int = 0
    """Epochs of this stage since its last improvement."""
    nonfinite_epochs: int = 0
    """Epochs in a row whose validation score was not finite."""
    lr_drops: list[int] = field(default_factory=list)
    """Epochs finished whenever the learning rate of this stage dropped, where schedule=plateau."""
    gain: float = 1.0
    """Fraction by which the last stage lowered the validation loss (or error)."""
    history: list[dict] = field(default_factory=list)
    """One row an epoch."""
    prediction_dynamics: list[list[float]] = field(default_factory=list)
    """Probability of its own label for each of a few validation images; one row an epoch."""
    plan: list[dict] = field(default_factory=list)
    """What was kept of each finished stage: epoch at its `start`, `epochs` trained, whether EMA weights (`averaged`),
    how far from the weights before the stage to these (`alpha`), and after which epochs the learning rate dropped
    (`lr_drops`)."""

    def begin_stage(self, best: float | None) -> None:
        """Start counting the epochs of a new stage.

        Args:
            best: validation score at its beginning, None if it is not finite.
        """
        self.start, self.best = self.epoch, best
        self.wait, self.best_epoch, self.lr_drops = 0, None, []


class Checkpoint(keras.callbacks.Callback):
    """After an epoch, save all that is needed to go on: weights, optimizer, random generators, best weights, state.

    A checkpoint is a folder that appears by one rename when its files are safely on disk, with a manifest of their
    digests; the last two are kept. Arrays that are as they were when the stage began (all that is frozen) are written
    once, into a folder named by their digest, `base-...`, that the checkpoints of the stage share. An epoch whose
    validation score was not finite is not saved.

    Args:
        state: saved as JSON, with the number of this epoch.
        folder: of the checkpoints.
        whole: the model of which the one in training may be a part.
        base: at the beginning of the stage, the variables of the whole model, `begun`, and the weights of the one in
            training, `before`.
        clock: which adds up the seconds as `checkpoints`.
        keep: holds the best weights in its `weights`, if there is one.
        seconds: of training between two checkpoints, at least; the end of a stage is always saved.
    """

    def __init__(
        self, state: TrainState, folder: Path, whole: keras.Model, base: Arrays, clock: progress.Timer,
        keep: keras.callbacks.Callback | None = None, seconds: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.state, self.folder, self.whole, self.base = state, folder, whole, base
        self.clock, self.keep, self.seconds = clock, keep, seconds
        self.saved, self.name = time.monotonic(), ""
        self.last: tuple[int, Arrays] | None = None

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Start the clock, and remember what training begins with, which is what was last saved."""
        self.saved, self.last = time.monotonic(), (self.state.epoch, self._present())

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Write the checkpoint of this epoch, if it is time."""
        ends = self.model.stop_training or epoch + 1 == (self.params or {}).get("epochs")
        if self.state.nonfinite_epochs or not (ends or time.monotonic() - self.saved >= self.seconds):
            return
        self.state.epoch = epoch + 1
        with self.clock("checkpoints"):
            self.last = epoch + 1, self._present()
            self._write(self.last[1] | {"best": self.keep.weights if self.keep else self.base["before"]})
        self.saved = time.monotonic()

    def _present(self) -> Arrays:
        holders = {"model": self.whole, "optimizer": self.model.optimizer}
        return {kind: [variable.numpy() for variable in holder.variables] for kind, holder in holders.items()}

    def _write(self, arrays: Arrays) -> None:
        self.name = self.name or write_base(self.folder, self.base)
        with disk.replacing_folder(self.folder / f"{self.state.epoch:05d}") as temporary:
            _save(
                temporary, {kind: _changed(group, self.base.get(SINCE.get(kind, ""))) for kind, group in arrays.items()}
            )
            # Not write_json: the history may hold a NaN, which our own reader takes.
            state = {"base": self.name, **dataclasses.asdict(self.state)}
            (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
            disk.seal(temporary)
        _prune(self.folder)


def write_base(folder: Path, base: Arrays) -> str:
    """Write what a stage began with, unless it is there, and give the name of its folder, which tells its contents."""
    digest = hashlib.sha256()
    for array in (array for group in base.values() for array in group):
        digest.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    place = folder / f"base-{digest.hexdigest()[:32]}"
    if not _is_whole(place):
        with disk.replacing_folder(place) as temporary:
            _save(temporary, {kind: dict(enumerate(group)) for kind, group in base.items()})
            disk.seal(temporary)
    return place.name


def read_checkpoint(folder: Path) -> tuple[TrainState, Arrays]:
    """Newest whole checkpoint, or a fresh state and no arrays if there never was one.

    Returns:
        The state, and arrays by kind: "model", "optimizer", "best", and those of the beginning of the stage, "begun"
        and "before".

    Raises:
        DamagedError: if there are checkpoints, and none of them is whole.
    """
    found = sorted(folder.glob("[0-9]*"), reverse=True)
    for checkpoint in found:
        try:
            disk.verify(checkpoint)
            values = runs.read_json(checkpoint / "state.json")
            base = values.pop("base", None)  # an older version wrote everything every time
            state, changed = TrainState(**_renamed(values)), _load(checkpoint)
            if base is None:
                return state, {kind: list(group.values()) for kind, group in changed.items()}
            disk.verify(folder / base)
            begun = {kind: list(group.values()) for kind, group in _load(folder / base).items()}
            arrays = {"optimizer": list(changed.get("optimizer", {}).values()), **begun}
            for kind, since in SINCE.items():
                arrays[kind] = [changed.get(kind, {}).get(i, old) for i, old in enumerate(begun[since])]
            return state, arrays
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            print(f"Checkpoint {str(checkpoint)!r} is damaged ({error}); trying the one before.", file=sys.stderr)
    if found:
        raise disk.DamagedError(
            f"No checkpoint in {str(folder)!r} is whole. Start a new run; or move this folder away, and a resumed run "
            "begins again from its first epoch."
        )
    return TrainState(), {}


def _renamed(values: dict) -> dict:
    """Values of a state as versions before 0.2 wrote them, by their present names."""
    values = {RENAMED.get(name, name): value for name, value in values.items()}
    values["plan"] = [{RENAMED.get(name, name): value for name, value in stage.items()} for stage in values["plan"]]
    return values


def _changed(group: Sequence[np.ndarray], since: Sequence[np.ndarray] | None) -> dict[int, np.ndarray]:
    """Arrays by number, without those that are equal to the last bit."""
    if since is None:
        return dict(enumerate(group))
    pairs = enumerate(zip(group, since, strict=True))
    return {i: new for i, (new, old) in pairs if new is not old and new.tobytes() != old.tobytes()}


def _save(temporary: Path, kinds: Mapping[str, Mapping[int, np.ndarray]]) -> None:
    with (temporary / "arrays.npz").open("wb") as file:
        arrays: dict[str, Any] = {f"{kind}_{i}": array for kind, group in kinds.items() for i, array in group.items()}
        np.savez(file, **arrays)


def _load(folder: Path) -> dict[str, dict[int, np.ndarray]]:
    arrays: dict[str, dict[int, np.ndarray]] = {}
    with np.load(folder / "arrays.npz", allow_pickle=False) as file:
        for name in file.files:  # in the order they were written
            kind, _, number = name.partition("_")
            arrays.setdefault(kind, {})[int(number)] = file[name]
    return arrays


def _is_whole(folder: Path) -> bool:
    try:
        disk.verify(folder)
    except (OSError, ValueError):
        return False
    return folder.is_dir()


def _prune(folder: Path) -> None:
    """Delete all checkpoints but two, and what only they were based on."""
    for checkpoint in sorted(folder.glob("[0-9]*"))[:-2]:
        disk.remove_folder(checkpoint)
    try:
        used = {runs.read_json(state).get("base") for state in folder.glob("[0-9]*/state.json")}
    except (OSError, ValueError):  # damaged: what it was based on is unknown
        return
    for base in folder.glob("base-*"):
        if base.name not in used:
            disk.remove_folder(base)
