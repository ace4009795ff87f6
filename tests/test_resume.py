"""Staged fine-tuning that was interrupted ends as an uninterrupted run, and checkpoints hold what that takes."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
from keras import layers
from scipy.special import softmax
from staged import CLASSES, SETTINGS, STAGES, coloured, context, fresh, load_pretrained, same, train

from template import disk
from template.config import Backbone, Stage
from template.progress import Timer
from template.train import checkpoint as checkpoints
from template.train import one_stage
from template.train.select import scores
from template.train.stages import fit, refit


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, shallow) -> Backbone:
    return load_pretrained(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def whole(pretrained, tmp_path_factory):
    """A run that nobody interrupted: its model, its state, its folder, and what was in it after each epoch."""
    folder, copies = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("copies")
    original = checkpoints.Checkpoint.on_epoch_end

    def copy(self, epoch, logs=None):
        original(self, epoch, logs)
        # Threads may be reading ahead, and computing the next views under a temporary name.
        shutil.copytree(folder, copies / str(epoch + 1), ignore=shutil.ignore_patterns(".tmp-*"))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoints.Checkpoint, "on_epoch_end", copy)
        return *train(pretrained, folder), folder, copies


def test_pretrained_batch_norm_stays_to_the_byte_while_kernels_move(pretrained, whole):
    moved = 0
    for old, new in zip(fresh(pretrained).layers, whole[0].layers, strict=True):
        for a, b in zip(old.get_weights(), new.get_weights(), strict=True):
            if isinstance(old, layers.BatchNormalization):
                assert a.tobytes() == b.tobytes(), old.name
            elif isinstance(old, layers.Conv2D) and not np.array_equal(a, b):
                moved += 1
    assert moved > 0


def test_it_learns_and_the_history_has_a_row_an_epoch(whole):
    model, state, folder, _ = whole
    history = state.history
    assert [row["epoch"] for row in history] == list(range(1, len(history) + 1))
    assert {row["stage"] for row in history} == {1, 2, 3}
    # The score that is recorded is that of the model that is left.
    val = coloured(12, 1)
    logits = model.predict(val.read(0, np.arange(12)).astype("float32"), verbose=0)
    found = scores(logits, val.labels)
    assert found["val_calibrated_cross_entropy"] == pytest.approx(state.best, abs=1e-4)
    loss = keras.losses.sparse_categorical_crossentropy(val.labels, logits, from_logits=True).numpy().mean()
    assert found["val_cross_entropy"] == pytest.approx(loss, abs=1e-5)
    assert loss < 0.9 * np.log(CLASSES)
    assert (folder / "history.csv").read_text().count("\n") == len(history) + 1
    assert list((folder / "tensorboard").glob("events*"))


@pytest.mark.slow  # what is monitored is in test_gradients.py
def test_a_monitored_run_has_the_same_history_bit_for_bit_and_a_row_for_each_block(whole, pretrained, tmp_path):
    settings = dataclasses.replace(SETTINGS, monitor_gradients=True)
    shutil.copytree(whole[-1] / "2", tmp_path, dirs_exist_ok=True)  # the last epoch of the head alone, and stage 2
    _, state = train(pretrained, tmp_path, STAGES[:2], settings)
    assert len(state.history) == 6
    for looked, plain in zip(state.history, whole[1].history, strict=False):
        assert {**looked, "seconds": 0} == {**plain, "seconds": 0}
    assert not (whole[2] / "gradients.csv").exists(), "off by default"
    rows = [line.split(",") for line in (tmp_path / "gradients.csv").read_text().splitlines()[1:]]
    blocks = {1: ["head"], 2: ["block3", "head"]}
    expected = [(r["stage"], r["epoch"], block) for r in state.history[2:] for block in blocks[r["stage"]]]
    assert [(int(stage), int(epoch), block) for stage, epoch, block, *_ in rows] == expected
    assert all(0 < float(update) < 1 for *_, update, _ in rows)


@pytest.mark.parametrize(
    ("epochs", "cache"),
    [
        pytest.param(2, "kept", marks=pytest.mark.slow),
        pytest.param(3, "kept", marks=pytest.mark.slow),
        pytest.param(5, "lost", marks=pytest.mark.slow),
        pytest.param(7, "kept", marks=pytest.mark.slow),
    ],
    ids=["in a stage", "at its end", "before new views, and none kept", "on images"],
)
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(whole, pretrained, tmp_path, epochs, cache):
    model, state, _, copies = whole
    shutil.copytree(copies / str(epochs), tmp_path, dirs_exist_ok=True)  # what kill -9 would have left
    if cache == "lost":
        shutil.rmtree(tmp_path / "cache")
    resumed, again = train(pretrained, tmp_path)

    def without_clock(rows):
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]

    assert without_clock(again.history) == without_clock(state.history)
    assert again.plan == state.plan and again.prediction_dynamics == state.prediction_dynamics
    assert same(model, resumed)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(whole, tmp_path, capsys):
    shutil.copytree(whole[-1] / "3", tmp_path, dirs_exist_ok=True)
    newest = max((tmp_path / "checkpoints").glob("[0-9]*"))
    whole = (newest / "arrays.npz").read_bytes()
    (newest / "arrays.npz").write_bytes(whole[: len(whole) // 2])
    state, arrays = checkpoints.read_checkpoint(tmp_path / "checkpoints")
    assert state.epoch == 2 and arrays["model"]
    assert "damaged" in capsys.readouterr().err


def test_if_no_checkpoint_is_whole_the_run_stops_and_deletes_nothing(whole, pretrained, tmp_path):
    shutil.copytree(whole[-1] / "3", tmp_path, dirs_exist_ok=True)
    for checkpoint in (tmp_path / "checkpoints").glob("[0-9]*"):
        (checkpoint / "state.json").write_text("{")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(disk.DamagedError, match="No checkpoint .* is whole"):
        train(pretrained, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_that_is_interrupted_leaves_those_before(whole, tmp_path, monkeypatch):
    shutil.copytree(whole[-1] / "3", tmp_path, dirs_exist_ok=True)
    base = {"begun": [v.numpy() for v in whole[0].variables], "before": whole[0].get_weights()}
    checkpoint = checkpoints.Checkpoint(checkpoints.TrainState(), tmp_path / "checkpoints", whole[0], base, Timer())
    checkpoint.set_model(whole[0])
    monkeypatch.setattr(np, "savez", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        checkpoint.on_epoch_end(3)
    assert checkpoints.read_checkpoint(tmp_path / "checkpoints")[0].epoch == 3
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.slow
def test_with_time_between_checkpoints_the_end_of_a_stage_is_saved_and_a_resumed_run_ends_bit_for_bit(
    whole, pretrained, tmp_path
):
    settings = dataclasses.replace(SETTINGS, checkpoint_seconds=3600)
    stages = (*STAGES[:2], dataclasses.replace(STAGES[2], epochs=1))
    seen, original = [], checkpoints.Checkpoint.on_epoch_end

    def stop(self, epoch, logs=None):
        original(self, epoch, logs)
        seen.append(sorted(int(path.name) for path in self.folder.glob("[0-9]*")))
        if epoch == 4:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(checkpoints.Checkpoint, "on_epoch_end", stop)
        train(pretrained, tmp_path, stages, settings)
    assert seen == [[], [], [3], [3], [3]]
    _, state = train(pretrained, tmp_path, stages[:2], settings)
    for again, before in zip(state.history, whole[1].history, strict=False):
        assert {**again, "seconds": 0} == {**before, "seconds": 0}
    assert [row["epoch"] for row in state.history] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "history.csv").read_text().count("\n") == 7


def test_what_is_frozen_is_written_once_a_stage(whole):
    copies = whole[-1]
    for epoch in (4, 5, 6):  # block 3 and the head train
        place = copies / str(epoch) / "checkpoints"
        state = json.loads((place / f"{epoch:05d}" / "state.json").read_text())
        assert (place / state["base"]).is_dir()
        with np.load(place / f"{epoch:05d}" / "arrays.npz") as file:
            written = sum(file[name].nbytes for name in file.files if name.startswith("model"))
        _, arrays = checkpoints.read_checkpoint(place)
        assert 0 < written < 0.7 * sum(array.nbytes for array in arrays["model"])
    names = [{path.name for path in (copies / str(epoch) / "checkpoints").glob("base-*")} for epoch in (4, 5, 6, 8)]
    assert len(names[0]) == 2, "of the checkpoint before too, which is of another stage"
    assert names[1] == names[2] < names[0] and len(names[2]) == len(names[3]) == 1 and not names[2] & names[3]


def test_without_what_the_stage_began_with_a_checkpoint_is_damaged(whole, tmp_path, capsys):
    shutil.copytree(whole[-1] / "4", tmp_path, dirs_exist_ok=True)
    place = tmp_path / "checkpoints"
    base = json.loads((place / "00004" / "state.json").read_text())["base"]
    data = bytearray((place / base / "arrays.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (place / base / "arrays.npz").write_bytes(data)
    assert checkpoints.read_checkpoint(place)[0].epoch == 3
    assert "damaged" in capsys.readouterr().err


def test_a_checkpoint_of_an_older_version_that_has_everything_is_read(whole, tmp_path):
    state, arrays = checkpoints.read_checkpoint(whole[2] / "checkpoints")
    old = {f"{kind}_{i}": x for kind in ("model", "optimizer", "best", "before") for i, x in enumerate(arrays[kind])}
    (tmp_path / "00008").mkdir()
    np.savez(tmp_path / "00008" / "arrays.npz", **old)
    (tmp_path / "00008" / "state.json").write_text(json.dumps(dataclasses.asdict(state)))
    disk.seal(tmp_path / "00008")
    again, read = checkpoints.read_checkpoint(tmp_path)
    assert again == state and "begun" not in read
    for kind in ("model", "optimizer", "best", "before"):
        assert all(a.tobytes() == b.tobytes() for a, b in zip(read[kind], arrays[kind], strict=True))


def test_a_checkpoint_of_before_with_its_old_names_is_read_as_one_of_now(tmp_path):
    plan = {"start": 0, "epochs": 2, "averaged": True}
    now = checkpoints.TrainState(
        stage=1, epoch=2, nonfinite_epochs=1, lr_drops=[2], prediction_dynamics=[[0.5]],
        plan=[{**plan, "alpha": 0.5, "lr_drops": [1]}],
    )  # fmt: skip
    before = dataclasses.asdict(now) | {"plan": [{**plan, "share": 0.5, "drops": [1]}]}
    for new, old in (("nonfinite_epochs", "blind"), ("lr_drops", "drops"), ("prediction_dynamics", "watched")):
        before[old] = before.pop(new)
    for name, values in (("old", before), ("new", dataclasses.asdict(now))):
        with disk.replacing_folder(tmp_path / name / "00002") as temporary:
            np.savez(temporary / "arrays.npz", model_0=np.ones(2))
            (temporary / "state.json").write_text(json.dumps(values))
            disk.seal(temporary)
        assert checkpoints.read_checkpoint(tmp_path / name)[0] == now


@pytest.mark.slow
@pytest.mark.parametrize(("epochs", "stages"), [(2, 1), (4, 2)])
def test_balanced_sampling_is_resumed_bit_for_bit_and_balances_a_refit_too(
    pretrained, tmp_path, monkeypatch, epochs, stages
):
    stages = (Stage(unfreeze=0, epochs=3, cached_augmentations=2), Stage(unfreeze="all", epochs=2))[:stages]
    last = sum(stage.epochs for stage in stages)
    settings = dataclasses.replace(SETTINGS, sampling="balanced")
    rare = dataclasses.replace(coloured(24, 0), labels=np.repeat(range(CLASSES), [16, 6, 2]))
    original, done, seen = checkpoints.Checkpoint.on_epoch_end, [], []

    def copy(self, epoch, logs=None):
        original(self, epoch, logs)
        done.append(epoch + 1)
        if self.folder.parent == tmp_path / "whole" and epoch + 1 == epochs:
            shutil.copytree(tmp_path / "whole", tmp_path / "copy", ignore=shutil.ignore_patterns(".tmp-*"))

    monkeypatch.setattr(checkpoints.Checkpoint, "on_epoch_end", copy)
    models = []
    for name in ("whole", "copy"):
        model, folder = fresh(pretrained, settings), tmp_path / name
        state = fit(model, rare, coloured(12, 1), context(pretrained, folder, stages, settings), folder)
        models.append(model)
    assert done == [*range(1, last + 1), *range(epochs + 1, last + 1)] and same(*models)
    plan = [{"start": 0, "epochs": 2, "averaged": False, "alpha": 1.0, "lr_drops": []}]
    plan += [{**later, "alpha": 0.0} for later in state.plan[1:]]
    real = one_stage.shuffled_batches
    monkeypatch.setattr(one_stage, "shuffled_batches", lambda *args: seen.append(real(*args)) or seen[-1])
    off = dataclasses.replace(settings, mixup=0.0, cutmix=0.0)
    refit(fresh(pretrained, off), [rare, coloured(12, 1)], plan, context(pretrained, tmp_path, stages, off), tmp_path)
    counts = sum(labels.sum(axis=0) for _, labels in seen[0].as_numpy_iterator())
    assert counts.tolist() == [24, 24, 24], "36 images twice, of which 20, 10 and 6 are of these classes"


def test_without_room_for_three_checkpoints_and_activations_nothing_begins(pretrained, whole, tmp_path, monkeypatch):
    asked = []

    def full(needs):
        asked.append(needs)
        raise disk.DiskError("no room")

    monkeypatch.setattr(disk, "require_space", full)
    with pytest.raises(disk.DiskError):
        train(pretrained, tmp_path)
    assert not (tmp_path / "checkpoints").exists() and not (tmp_path / "cache").exists()
    needs, folder = asked[0], whole[2]
    for checkpoint in (folder / "checkpoints").iterdir():
        assert sum(file.stat().st_size for file in checkpoint.iterdir()) <= 1.1 * needs[tmp_path] / 3
    # Views that are refreshed make room for one another, and are counted once.
    stored = sum(file.stat().st_size for file in (folder / "cache").glob("features-*"))
    assert 0.3 * stored < needs[tmp_path / "cache"] <= stored


@pytest.mark.slow
@pytest.mark.parametrize(("epoch", "left"), [("2", [3, 4, 5]), ("5", [])])
def test_a_final_fit_that_was_killed_ends_bit_for_bit_as_a_whole_one(pretrained, tmp_path, monkeypatch, epoch, left):
    plan = [
        {"start": 0, "epochs": 3, "averaged": True, "alpha": 0.5, "lr_drops": []},
        {"start": 3, "epochs": 2, "averaged": False, "alpha": 1.0, "lr_drops": []},
        {"start": 6, "epochs": 0, "averaged": False, "alpha": 0.0, "lr_drops": []},
    ]
    parts, settings = [coloured(24, 0), coloured(12, 1)], context(pretrained, tmp_path)
    original, copies = checkpoints.Checkpoint.on_epoch_end, tmp_path / "copies"

    def copy(self, epoch, logs=None):
        original(self, epoch, logs)
        shutil.copytree(tmp_path / "whole", copies / str(epoch + 1))

    model = fresh(pretrained)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.Checkpoint, "on_epoch_end", copy)
        refit(model, parts, plan, settings, tmp_path / "whole")
    assert sorted(path.name for path in copies.iterdir()) == ["1", "2", "3", "4", "5"]
    done, again = [], fresh(pretrained)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.Checkpoint, "on_epoch_end", lambda s, e, logs=None: done.append(e + 1))
        refit(again, parts, plan, settings, copies / epoch)
    assert done == left
    assert same(model, again)


def test_what_is_watched_is_what_the_network_said_at_the_end_of_the_epoch(whole, pretrained):
    _, state, _, copies = whole
    val, model = coloured(12, 1), fresh(pretrained)
    assert len(state.prediction_dynamics) == len(state.history)
    for epoch, tolerance in ((2, 0.01), (len(state.history), 2e-4)):  # on stored float16 activations, and on images
        _, arrays = checkpoints.read_checkpoint(copies / str(epoch) / "checkpoints")
        one_stage.assign(model.variables, arrays["model"])
        said = softmax(model.predict(val.read(0, np.arange(12)).astype("float32"), verbose=0), axis=1)
        own = said[np.arange(12), val.labels]
        assert own.std() > tolerance and state.prediction_dynamics[epoch - 1] == pytest.approx(own, abs=tolerance)
