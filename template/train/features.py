"""While the lower blocks are frozen, run them once: activations at the boundary, for several augmented views."""

import dataclasses
import functools
import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from .. import progress
from ..config import Config
from ..data.array_file import ArrayFile, Selection
from ..data.batches import ordered_batches
from ..data.cache import Cache
from ..data.dataset import ArrayDataset, concatenate
from ..model.inference import fingerprint, inference
from .distribute import on_all
from .linear_probe import Probe
from .nonfinite import NonFiniteError


def split_model(model: keras.Model, boundary: keras.KerasTensor) -> tuple[keras.Model, keras.Model]:
    """Divide a flat model at one of its tensors.

    Returns:
        From the model's input to the boundary, and from there to its output. Both share the model's layers: training
        the second trains the model.
    """
    return _below(model.inputs[0], boundary), keras.Model(boundary, model.outputs[0])


@functools.lru_cache(maxsize=4)  # for stages, refit and evaluation to have the same, which TensorFlow traces once
def _below(inputs: keras.KerasTensor, boundary: keras.KerasTensor) -> keras.Model:
    return keras.Model(inputs, boundary)


def activations(network: Callable, dataset: ArrayDataset, epoch: int, batch_size: int) -> Iterator[np.ndarray]:
    """Outputs of `inference` over one epoch of a dataset, batch by batch in order, float32 [batch, ...]."""
    view = ArrayDataset(lambda _, rows: dataset.read(epoch, rows), np.zeros(len(dataset), np.int64))  # no labels
    for inputs, _ in ordered_batches(view, 1, batch_size):
        yield network(inputs).numpy()


@dataclass(frozen=True)
class FeatureCache:
    """A folder of activations, each named by what it was computed from: network, weights and images.

    So a refit finds what the stages computed, and tomorrow's run what today's did.

    Args:
        folder: may be deleted; what is needed is computed again.
        limit_bytes: of all files in the folder, those of others too.
        batch_size: of the passes.
        clock: which adds up their seconds as `features`.
        probes: linear probes of this run, by digest of the features that they were fitted on.
        spared: by name of what was found, images and the seconds that they took an earlier run; 0 if it was this one.
    """

    folder: Path
    limit_bytes: float
    batch_size: int
    clock: progress.Timer
    probes: dict[str, Probe] = field(default_factory=dict)
    spared: dict[str, tuple[int, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config, clock: progress.Timer | None = None) -> "FeatureCache":
        """In the cache folder of a recipe."""
        folder, limit = Path(config.data.cache).expanduser(), config.data.cache_gb * 2**30
        return cls(folder, limit, config.train.batch_size, clock or progress.Timer())

    def outputs(
        self, network: keras.Model, dataset: ArrayDataset, epochs: range, dtype: type = np.float16
    ) -> ArrayFile | Selection:
        """Outputs of a network, not training, over epochs of a dataset: [epochs * n, ...], computed or found.

        Where the dataset is a `share`, those of the whole are computed or found.

        Values beyond the range of the type are clipped to it; a message says how many.

        Raises:
            OSError: if the disk is full.
            NonFiniteError: if an output is NaN.
        """
        if dataset.whole:
            whole, rows = dataset.whole
            return Selection(self.outputs(network, whole, epochs, dtype), rows, len(whole))
        shape = (len(epochs) * len(dataset), *network.output_shape[1:])
        digest = fingerprint(network)
        name = dataset.key and f"{digest} {dataset.key} {epochs} {np.dtype(dtype)}"  # without, not cached
        name = name and f"features-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        most = float(np.finfo(dtype).max)

        def batches(notes: dict) -> Iterator[np.ndarray]:
            function, notes["clipped"], self.spared[name] = on_all(inference(network, digest)), [0, 0], (0, 0.0)
            times = [time.perf_counter()]
            with self.clock("features", shape[0]) as step:
                for epoch in epochs:
                    for number, batch in enumerate(activations(function, dataset, epoch, self.batch_size)):
                        if np.isnan(batch).any():
                            raise NonFiniteError(
                                f"The network gives NaN for images of batch {number + 1} of its input. Its weights "
                                "are damaged (backbone.weights), or too large for train.precision: use float32."
                            )
                        # Beyond the range: an infinity would become NaN in the first step.
                        beyond = (np.abs(batch) > most).sum(axis=tuple(range(1, batch.ndim)))
                        notes["clipped"][0] += int(beyond.sum())
                        notes["clipped"][1] += int(np.count_nonzero(beyond))
                        yield np.clip(batch, -most, most).astype(dtype)
                        step.advance(len(batch))
                        times.append(time.perf_counter())
            each = np.diff(times)  # of the first batch most is tracing
            notes["seconds"] = float(np.median(each)) * len(each) if len(each) else 0.0

        outputs = self.cache.rows(name, batches, shape, dtype, memory_bytes=self.limit_bytes / 8)
        seconds = outputs.notes.get("seconds", 0.0)
        self.spared.setdefault(name, (shape[0] if seconds else 0, seconds))
        _print_clipped(outputs)
        return outputs

    @property
    def cache(self) -> Cache:
        """Where the activations are, beside the pixels."""
        return Cache(self.folder, self.limit_bytes)

    def size_bytes(self) -> int:
        """Bytes of all that is there."""
        return self.cache.size_bytes()


def _print_clipped(rows: ArrayFile) -> None:
    values, images = rows.notes.get("clipped", (0, 0))
    if values:
        print(
            f"  clipped: {values:,} of {math.prod(rows.shape):,} activations {rows.shape[1:]}, in {images} of "
            f"{len(rows)} images, are beyond {np.finfo(rows.dtype).max:,.0f}, the most that {rows.dtype} holds. If "
            "train.precision is mixed_float16, take another; else other weights (backbone.weights) or another network "
            "(backbone.name)."
        )


def cached(
    bottom: keras.Model, dataset: ArrayDataset, views: int, refresh: int, cache: FeatureCache, dtype: type = np.float16
) -> ArrayDataset:
    """Run a frozen network over several views of a dataset, and give its outputs in place of its inputs.

    Epoch e of the result is view e modulo `views`: for no more epochs than views, training on it sees what training on
    the dataset itself would.

    Args:
        bottom: from `split_model`.
        dataset: what `bottom` takes.
        views: how many epochs of the dataset to cache.
        refresh: compute other views after so many epochs, 0 for never.
        cache: for the activations.
        dtype: of them; float16 is enough to train on.
    """
    n, lock, held = len(dataset), threading.Lock(), dict[int, ArrayFile | Selection]()
    soft = dataset.soft_labels

    def values(generation: int) -> ArrayFile | Selection:
        with lock:  # two threads may read ahead
            if generation not in held:
                held.pop(generation - 2, None)
                epochs = range(generation * views, (generation + 1) * views)
                held[generation] = cache.outputs(bottom, dataset, epochs, dtype)
            return held[generation]

    def view(epoch: int) -> tuple[int, int]:
        generation = epoch // refresh if refresh else 0
        return generation, (epoch - generation * refresh) % views

    def read(epoch: int, rows: np.ndarray) -> np.ndarray:
        generation, number = view(epoch)
        return values(generation)[number * n + rows]

    def soft_labels(epoch: int, rows: np.ndarray) -> np.ndarray:
        generation, number = view(epoch)
        assert soft  # or this is not called
        return soft(generation * views + number, rows)

    values(0)
    return dataclasses.replace(dataset, read=read, key="", whole=None, soft_labels=soft and soft_labels)


def from_boundary(
    model: keras.Model, boundary: keras.KerasTensor | None, views: Sequence[ArrayDataset], cache: FeatureCache
) -> tuple[keras.Model, list[ArrayDataset]]:
    """What predicts, and on what: the part of a model above a frozen boundary on cached activations of each view.

    However often the part above is trained and asked, images pass through the part below once: before training, in
    it and after it the activations are found. They are float32, so that the predictions are those of the model on
    images. Where nothing is frozen, or the activations would not fit, that is what predicts.

    Args:
        model: to its logits, or to anything else above the boundary.
        boundary: one of its tensors, or None if nothing is frozen.
        views: images as evaluation sees them.
        cache: for activations.
    """
    if boundary is None or activation_bytes(boundary, 0, sum(view.cached_images for view in views)) > cache.limit_bytes:
        return model, list(views)
    bottom, tail = split_model(model, boundary)
    below = fingerprint(bottom)

    def inputs(view: ArrayDataset) -> ArrayDataset:  # has a key: what is above may be frozen, and cached, too
        return dataclasses.replace(
            cached(bottom, view, 1, 0, cache, np.float32), key=view.key and f"{view.key} {below}"
        )

    return tail, list(map(inputs, views))


def activation_bytes(boundary: keras.KerasTensor, trained: int, measured: int) -> int:
    """Bytes of the activations of so many views that are trained on, float16, and others that are measured, float32."""
    return (2 * trained + 4 * measured) * math.prod(boundary.shape[1:])


def cache_frozen(
    model: keras.Model,
    boundary: keras.KerasTensor | None,
    train: Sequence[ArrayDataset],
    val: ArrayDataset | None,
    *,
    views: int,
    refresh: int,
    cache: FeatureCache,
) -> tuple[keras.Model, ArrayDataset, ArrayDataset | None]:
    """What to train, and on what: the tail above a boundary on cached activations, or the whole model on images.

    Caching pays whenever something is frozen: with no more views than epochs it never computes more than training on
    images would. It is not done where the activations would not fit. Says which and why.

    Args:
        model: with everything below the boundary frozen.
        boundary: input of its lowest trainable block, or None if nothing is frozen.
        train: images, augmented, in one part or several.
        val: images, or None.
        views: epochs of the images to cache.
        refresh: compute other views after so many epochs, 0 for never.
        cache: for activations.
    """
    if boundary is None:
        print("  on images: nothing is frozen below what trains")
        return model, concatenate(train), val
    bottom, tail = split_model(model, boundary)
    trained = sum(part.cached_images for part in train)
    size = activation_bytes(boundary, trained * views, val.cached_images if val else 0)
    if size > cache.limit_bytes:
        print(f"  on images: {views} views of activations would take {size / 2**30:.1f} GiB")
        return model, concatenate(train), val
    print(f"  on {views} cached views, activations {bottom.output_shape[1:]}, {size / 2**20:,.0f} MiB")
    parts = [cached(bottom, part, views, refresh, cache) for part in train]
    return tail, concatenate(parts), val and cached(bottom, val, 1, 0, cache, np.float32)
