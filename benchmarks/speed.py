"""How fast the parts are, as ratios of two contestants side by side in one run, and how much memory a run takes.

python benchmarks/speed.py augmentation                          # against RandAugment of Keras, both in tf.data
python benchmarks/speed.py passes                                # batch normalisation folded, against plain Keras
python benchmarks/speed.py tail --backbone.weights=imagenet      # stored activations against augmented images
python benchmarks/speed.py step                                  # with every setting off, against plain Keras
python benchmarks/speed.py memory --images 20000 --out FILE      # a whole run in a process of its own; Linux only

Seconds depend on the machine, ratios much less: contestants take turns, and the median of the rounds' ratios counts.
Where something else is running, look at the ratio in CPU seconds. All images are generated. A claim that does not
hold is said so, and is no error.
"""

import argparse
import contextlib
import csv
import dataclasses
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from template import progress, runs
from template.config import Augment, Backbone, Head, Stage, Train

TRAIN = Path(__file__).parents[1] / "scripts" / "train.py"
CLASSES, BATCH, SEED = 3, 32, 0
UNFROZEN = 2  # top blocks that train, in `tail` and `memory`


@runs.script()
def main() -> None:
    """Measure one part, print a table and say whether its claims hold, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for measure, images, least in (
        (augmentation, 1920, 10 * BATCH),
        (passes, 320, BATCH),
        (tail, 200, BATCH),
        (step, 320, BATCH),
        (memory, 20_000, 400),
    ):
        part = parts.add_parser(measure.__name__, help=measure.__doc__.splitlines()[0])
        part.set_defaults(measure=measure)
        part.add_argument("--images", type=at_least(least), default=images, help=f"how many (default: {images})")
        part.add_argument("--out", type=Path, help="JSON to write")
        if measure is not memory:
            part.add_argument("--rounds", type=at_least(3), default=3, help="turns of each contestant (default: 3)")
        if measure is tail:
            words = "of MobileNet, alpha 0.75: imagenet, a file, or none for random ones (default)"
            part.add_argument("--backbone.weights", dest="weights", default="none", help=words)
    given = vars(parser.parse_args())
    name, measure, out = (given.pop(key) for key in ("part", "measure", "out"))
    if out:
        runs.check_output(out, "file")
    runs.import_tensorflow()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(Path(scratch), **given)
    if out:
        runs.write_json(out, {"part": name, **result, "environment": runs.environment()})


def augmentation(_: Path, images: int, rounds: int, size: int = 224) -> dict:
    """Images a second through tf.data: the policy `heavy`, and RandAugment of Keras. At least 60 times.

    Ours also shuffles. RandAugment varies whole batches and computes all of its 11 operations to keep one, twice; it
    gets a tenth of the images.
    """
    import keras
    import tensorflow as tf

    from template.data.batches import shuffled_batches
    from template.data.dataset import train_dataset

    pixels, labels = sample_images(256, size)
    source = train_dataset(pixels, np.arange(len(pixels)), labels, Augment(policy="heavy"), SEED)
    ours = shuffled_batches(source, CLASSES, BATCH, SEED, range(10**6))
    layer = keras.layers.RandAugment(value_range=(0, 255), num_ops=2, seed=SEED)
    other = tf.data.Dataset.from_tensor_slices((pixels, labels)).repeat().batch(BATCH)
    other = other.map(lambda x, y: (layer(x), y), num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    result = alternate(lambda: an_image(ours, images), lambda: an_image(other, images // 10), rounds, least=60)
    speeds = {who: (1 / result[key][0], 1000 * result[key][1]) for who, key in (("heavy", "ours"), ("Keras", "other"))}
    table(f"augmentation, {size} pixels, batches of {BATCH}", ("images/s", "CPU ms an image"), speeds)
    return {"images": images, "size": size, "unit": "seconds an image", **result}


def an_image(batches: Iterable, images: int) -> np.ndarray:
    """Clocks an image, over at least so many images of an endless data set.

    They start a few batches late: the buffers are then as full at the start as at the end.
    """
    batches = iter(batches)
    for _ in range(4):
        next(batches)
    start, seen = now(), 0
    while seen < images:
        seen += len(next(batches)[0])
    return (now() - start) / seen


def passes(_: Path, images: int, rounds: int, name: str = "efficientnet_lite0", size: int = 288) -> dict:
    """Seconds of passes through a frozen network, and of the same as Keras has it, compiled too. At least 1.2 times."""
    import tensorflow as tf

    from template.model.backbones import build_backbone
    from template.model.inference import inference

    network = build_backbone(Backbone(name=name, weights="none"), size)
    ours, other = inference(network), tf.function(lambda inputs: network(inputs, training=False), reduce_retracing=True)
    batch = sample_images(BATCH, size)[0].astype(np.float32)
    difference = float(np.abs(ours(batch) - other([batch])).max() / np.abs(other([batch])).max())  # and traces both
    result = alternate(
        lambda: some_passes(ours, batch, images), lambda: some_passes(other, [batch], images), rounds, least=1.2
    )
    table(f"{name}, {images} images of {size} pixels", ("seconds", "CPU seconds"), {
        "passes, batch normalisation folded": result["ours"], "passes of plain Keras": result["other"],
    })  # fmt: skip
    result["claims"].append(
        claim("largest difference, of the largest output, below 1e-4", difference, difference < 1e-4)
    )
    return {"images": images, "size": size, "backbone": name, "unit": "seconds", **result, "difference": difference}


def some_passes(function: Callable, batch: object, images: int) -> np.ndarray:
    """Clocks of passes of at least so many images."""
    start = now()
    for _ in range(-(-images // BATCH)):
        function(batch).numpy()
    return now() - start


def tail(
    scratch: Path, images: int, rounds: int, weights: str = "none", name: str = "mobilenet", size: int = 224
) -> dict:
    """Seconds of an epoch of the top blocks on stored activations, and on images. At least 5 times; equal losses."""
    from template.data.dataset import train_dataset
    from template.train.one_stage import compile_for
    from template.train.optimizers import create_optimizer, create_schedule

    backbone = Backbone(name=name, alpha=0.75, weights=weights)
    if weights == "none":
        backbone = random_weights(backbone, size, scratch)
    pixels, labels = sample_images(images, size)
    source = train_dataset(pixels, np.arange(images), labels, Augment(), SEED)
    model, cache = unfrozen(backbone, Head(), size, scratch)
    start = now()
    top, stored = cache(source)
    filling = (now() - start).tolist()
    for network in (top, model):
        compile_for(network, create_optimizer(Stage(), create_schedule(Stage(), 2 * rounds * images)))
    result = alternate(lambda: an_epoch(top, stored), lambda: an_epoch(model, source), rounds, least=5)
    losses = a_step(backbone, size, scratch)
    difference = float(np.abs(np.subtract(losses["ours"], losses["other"])).max())
    table(f"top {UNFROZEN} blocks of {name}, {images} images of {size} pixels", ("seconds", "CPU seconds"), {
        "an epoch on stored activations": result["ours"],
        "an epoch on augmented images": result["other"],
        "filling the cache with one view, and tracing": filling,
    })  # fmt: skip
    result["claims"].append(claim("difference of a batch's losses, below 0.001", difference, difference < 1e-3))
    return {"images": images, "size": size, "backbone": name, "weights": weights, "unit": "seconds an epoch",
            **result, "filling": filling, "losses": losses}  # fmt: skip


def an_epoch(network, inputs) -> np.ndarray:
    """Clocks of the second epoch of a `fit`: in the first the network is traced and buffers are filled."""
    import keras

    from template.data.batches import shuffled_batches, steps

    marks = []
    mark = {f"on_epoch_{when}": lambda *_: marks.append(now()) for when in ("begin", "end")}
    batches = shuffled_batches(inputs, CLASSES, BATCH, SEED, range(3))  # one more, to read ahead as a longer fit does
    network.fit(batches, epochs=2, steps_per_epoch=steps(inputs, BATCH), shuffle=False, verbose=0,
                callbacks=[keras.callbacks.LambdaCallback(**mark)])  # fmt: skip
    return marks[3] - marks[2]


def a_step(backbone: Backbone, size: int, scratch: Path) -> dict[str, list[float]]:
    """Loss of one batch before and after one step on it from the same weights: on stored activations, on images.

    Without augmentation and dropout, so that only the rounding of what is stored may differ. (A step so large that it
    raises the loss would raise the difference with it.)
    """
    from template.data.dataset import eval_dataset
    from template.train.one_stage import compile_for
    from template.train.optimizers import create_optimizer, create_schedule

    pixels, labels = sample_images(BATCH, size)
    rows, one_hot, losses = np.arange(BATCH), np.eye(CLASSES)[labels], {}
    stage = Stage(learning_rate=5e-5, warmup=0)
    source = eval_dataset(pixels, rows, labels)
    model, cache = unfrozen(backbone, Head(dropout=0), size, scratch)
    weights = model.get_weights()
    for key, (network, inputs) in (("ours", cache(source)), ("other", (model, source))):
        model.set_weights(weights)
        compile_for(network, create_optimizer(stage, create_schedule(stage, 64), averaged=False))
        batch = inputs.read(0, rows).astype(np.float32)
        before = network.evaluate(batch, one_hot, verbose=0, return_dict=True)["loss"]
        network.train_on_batch(batch, one_hot)
        losses[key] = [before, network.evaluate(batch, one_hot, verbose=0, return_dict=True)["loss"]]
    return losses


def unfrozen(backbone: Backbone, head: Head, size: int, scratch: Path) -> tuple:
    """A model of which the top trains, and a function from images to that top and its stored inputs."""
    import keras

    from template.model.blocks import boundary, find_blocks, freeze
    from template.model.build import build
    from template.train.features import FeatureCache, cache_frozen

    keras.utils.set_random_seed(SEED)
    model, cache = build(backbone, head, size, np.ones(CLASSES)), FeatureCache(scratch, 2**33, BATCH, progress.Timer())
    blocks = find_blocks(model, backbone)
    freeze(model, blocks, UNFROZEN)
    bottom = boundary(model, blocks, UNFROZEN)
    return model, lambda source: cache_frozen(model, bottom, [source], None, views=1, refresh=0, cache=cache)[:2]


def step(scratch: Path, images: int, rounds: int, name: str = "mobilenet", size: int = 96) -> dict:
    """Seconds of an epoch of a stage with every setting off, and of the network compiled by hand. At most 1.03 times.

    Both see images as they are, train all weights by AdamW with a moving average, and log the same scores.
    """
    import keras

    from template.data.dataset import train_dataset
    from template.model.blocks import find_blocks
    from template.model.build import build
    from template.train.features import FeatureCache
    from template.train.one_stage import TrainContext, compile_stage

    backbone, head = Backbone(name=name, alpha=0.75, weights="none"), Head(dropout=0, l2=0)
    pixels, labels = sample_images(images, size)
    source = train_dataset(pixels, np.arange(images), labels, Augment(policy="none"), SEED)
    stage, settings = Stage(unfreeze="all", epochs=3 * rounds), Train(batch_size=BATCH)
    ours, plain = (build(backbone, head, size, np.ones(CLASSES)) for _ in range(2))
    context = TrainContext(
        find_blocks(ours, backbone), (stage,), settings, FeatureCache(scratch, 2**33, BATCH, progress.Timer())
    )
    compile_stage(ours, stage, [source], None, context)
    rate = keras.optimizers.schedules.CosineDecay(stage.learning_rate, 3 * rounds * images // BATCH)
    scores = [keras.metrics.CategoricalAccuracy(), keras.metrics.CategoricalCrossentropy(from_logits=True),
              keras.metrics.F1Score(average="macro")]  # fmt: skip
    plain.compile(keras.optimizers.AdamW(rate, use_ema=True), keras.losses.CategoricalCrossentropy(from_logits=True),
                  metrics=scores, jit_compile=ours.jit_compile)  # fmt: skip
    result = alternate(lambda: an_epoch(ours, source), lambda: an_epoch(plain, source), rounds, least=0.97)
    table(f"{name}, {images} images of {size} pixels", ("seconds", "CPU seconds"), {
        "an epoch with every setting off": result["ours"], "an epoch of plain Keras": result["other"],
    })  # fmt: skip
    return {"images": images, "size": size, "backbone": name, "unit": "seconds an epoch", **result}


def memory(scratch: Path, images: int, name: str = "mobilenet", size: int = 224) -> dict:
    """Peak memory of a run and its seconds an image, for a tenth of the images and for all. 4 GiB; 1.1 times.

    The weights are random but come from a file: so they count as pretrained, and the run has its probe and its stored
    activations. The refit, which only the smaller run might get, is off.
    """
    if not sys.platform.startswith("linux"):
        sys.exit(f"memory: expected Linux, where /proc tells a process's peak memory. Received: {sys.platform}. "
                 "Run it there; the other parts run everywhere.")  # fmt: skip
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # in use already
        tf.config.set_visible_devices([], "GPU")  # this process would take all memory of the GPU from its child
    backbone = random_weights(Backbone(name=name, alpha=0.25, weights="none"), size, scratch)
    few, many = both = [trained(scratch / str(number), backbone, number, size) for number in (images // 10, images)]
    rows = {"peak memory, GiB": [run["peak_gib"] for run in both], "seconds": [run["seconds"] for run in both]}
    for phase in many["phases"]:
        rows[f"ms an image, {phase}"] = [1000 * run["phases"].get(phase, 0) / run["images"] for run in both]
    table(f"{name}, {size} pixels", [f"{run['images']:,} images" for run in both], rows)
    growth = (many["seconds"] / many["images"]) / (few["seconds"] / few["images"])
    return {"size": size, "runs": both, "growth": growth, "claims": [
        claim("GiB at the peak, at most 4", many["peak_gib"], many["peak_gib"] <= 4),
        claim("times the seconds an image of the smaller run, at most 1.1", growth, growth <= 1.1),
    ]}  # fmt: skip


def trained(folder: Path, backbone: Backbone, images: int, size: int) -> dict:
    """Write images, run scripts/train.py on them in a process of its own, and watch its memory."""
    write_images(folder / "images", images)
    line = [f"--runs={folder / 'runs'}", f"--data.path={folder / 'images'}", f"--data.cache={folder / 'cache'}"]
    line += [f"--backbone.{key}={value}" for key, value in dataclasses.asdict(backbone).items() if value != ()]
    line += [f"--data.image_size={size}", "--data.memory_gb=0.5", "--data.cache_gb=8"]
    line += [
        f"--stages.0.unfreeze={UNFROZEN}",
        "--stages.0.epochs=2",
        "--stages.0.cached_augmentations=1",
        "--train.refit_on_train_val=no",
    ]
    print(f"training on {images:,} images", flush=True)
    log, peak, start = folder / "log", 0, time.perf_counter()
    with log.open("w") as out, subprocess.Popen([sys.executable, TRAIN, *line], stdout=out, stderr=out) as process:
        while process.poll() is None:
            held = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            peak = max(peak, 1024 * int(held[1]) if held else 0)  # a process that has just ended holds nothing
            time.sleep(0.1)
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{TRAIN} ended with {process.returncode}. Its last words:\n{log.read_text()[-2000:]}")
    (run,) = (folder / "runs").iterdir()
    with (run / "split.csv").open(newline="") as split:
        used = len(list(csv.DictReader(split)))
    phases = runs.read_json(run / "metrics.json")["seconds"]
    return {"images": used, "peak_gib": peak / 2**30, "seconds": seconds, "phases": phases}


def now() -> np.ndarray:
    """Two clocks: seconds, and CPU seconds of all threads of this process."""
    return np.array([time.perf_counter(), time.process_time()])


def alternate(ours: Callable[[], np.ndarray], other: Callable[[], np.ndarray], rounds: int, least: float) -> dict:
    """Let two contestants take turns: medians of what their clocks say, and of the ratios other / ours.

    The claim is that ours is so many times as fast, by the clock on the wall.
    """
    turns = np.array([(ours(), other()) for _ in range(rounds)])  # [round, contestant, clock]
    result = {"ours": turns[:, 0], "other": turns[:, 1], "ratio": turns[:, 1] / turns[:, 0]}
    result = {key: np.median(values, axis=0).tolist() for key, values in result.items()}
    seconds, cpu = result["ratio"]
    claims = [claim(f"times as fast ({cpu:.1f} in CPU seconds), at least {least}", seconds, seconds >= least)]
    return {**result, "rounds": turns.tolist(), "claims": claims}


def table(title: str, columns: Iterable[str], rows: dict[str, Iterable[float]]) -> None:
    """Print numbers under each other."""
    print(f"\n{title:<52}" + "".join(f"{column:>18}" for column in columns))
    for name, values in rows.items():
        print(f"  {name:<50}" + "".join(f"{value:>18,.4g}" for value in values), flush=True)


def claim(words: str, value: float, holds: bool) -> dict:
    """Say whether a claim holds."""
    print(f"{value:.3g} {words}: {'holds' if holds else 'DOES NOT HOLD'}")
    return {"claim": words, "value": value, "holds": holds}


def sample_images(number: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Generated images, uint8 [n, size, size, 3], and their labels: a class is the colour of a gradient under noise.

    No two are equal, and saved as JPEG they are as large as photographs.
    """
    return np.stack([image(row, size) for row in range(number)]), np.arange(number) % CLASSES


def image(row: int, size: int) -> np.ndarray:
    """One of them; its class is row modulo CLASSES."""
    generator = np.random.default_rng([SEED, row])
    colour = np.roll([190, 120, 60], row % CLASSES) * generator.uniform(0.7, 1)
    ramp = np.linspace(0, 1, size)[:, None, None] * colour
    return ramp.astype(np.uint8) + generator.integers(0, 60, (size, size, 3), dtype=np.uint8)


def write_images(folder: Path, number: int) -> None:
    """Write a folder of class folders with JPEG images of 256 x 256."""
    from PIL import Image

    for row in range(number):
        (folder / f"class{row % CLASSES}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(row, 256)).save(folder / f"class{row % CLASSES}" / f"{row:06d}.jpg")


def random_weights(backbone: Backbone, size: int, folder: Path) -> Backbone:
    """The same backbone with random weights in a file, so that it counts as pretrained.

    Batch normalisation gets the statistics of a batch. With those it is born with, values shrink from block to block
    to 1e-15: float16 would cache zeros, and losses would agree about nothing.
    """
    import keras

    from template.model.backbones import build_backbone

    keras.utils.set_random_seed(SEED)
    network = build_backbone(dataclasses.replace(backbone, weights="none"), size)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    network([sample_images(BATCH, size)[0].astype(np.float32)], training=True)
    network.save_weights(folder / "random.weights.h5")
    return dataclasses.replace(backbone, weights=str(folder / "random.weights.h5"))


def at_least(least: int) -> Callable[[str], int]:
    """Type of an argument that is a number from here on."""

    def number(text: str) -> int:
        if text.isdecimal() and int(text) >= least:
            return int(text)
        raise argparse.ArgumentTypeError(f"expected a number, at least {least}. Received: {text!r}")

    return number


if __name__ == "__main__":
    main()
