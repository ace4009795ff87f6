"""Accuracy and seconds side by side: the recipe of the Keras guides, a logistic probe, and ours.

    python benchmarks/accuracy.py --data.path=FOLDER --per-class 50 --seeds 3 --backbone.name=mobilenet

Same images, weights and split for all. FOLDER is one of class folders, of which every seed takes `--per-class`
training images per class and tests on the rest; or has train/ and test/ (or val/), which are taken as they are; or
`digits`. Seconds are those from decoded images to a trained model, without predicting the test images; looking at
them in another size, decoding included, counts. Ours sees them as the recipe says (`--data.image_size`), guide and
probe at `--size` pixels: 224 unless given, as the networks were trained and as the guides have it. A fourth method,
`best_probe`, chooses size and resizing of the probe by cross-validation; a fifth, `networks`, chooses the network of
those at hand, and says how good that choice was; a sixth, `student`, is ours taught by a run of EfficientNet-Lite0.
"""

import argparse
import csv
import dataclasses
import functools
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from template import config as configuration
from template import runs

TEACHER = "efficientnet_lite0"
RECIPE = Path(__file__).parent.parent / "configs" / "folder.toml"


@runs.script()
def main() -> None:
    """Run the three methods on every seed, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-class", type=int, default=50, help="training images per class (default: 50)")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds (default: 3)")
    parser.add_argument("--size", type=int, default=224, help="pixels a side for guide and probe (default: 224)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["guide", "probe", "ours"])
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"), help="JSON to write or add to")
    known, rest = parser.parse_known_args()
    runs.check_output(known.out, "file")
    before = written(known.out)
    try:
        config = configuration.load(RECIPE, list(configuration.pair_up(rest)))
    except configuration.ConfigError as error:
        sys.exit(str(error))
    runs.import_tensorflow()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(known.seeds):
            table = write_split(config.data.path, known.per_class, seed, Path(scratch))
            for method in known.methods:
                cache = Path(scratch) / f"{seed}-{method}"  # no method finds what another has computed
                data = dataclasses.replace(config.data, path=str(table), cache=str(cache))
                if method in ("guide", "probe"):
                    data = dataclasses.replace(data, image_size=known.size)
                settings = dataclasses.replace(config, data=data, train=dataclasses.replace(config.train, seed=seed))
                correct, tested, seconds, *spent = METHODS[method](settings, Path(scratch))
                rows.append({"data": config.data.path, "per_class": known.per_class, "seed": seed, "method": method,
                             "correct": correct, "tested": tested, "seconds": seconds, "spent": spent})  # fmt: skip
                print(f"seed {seed} {method:<10} accuracy {correct / tested:.4f} in {seconds:.1f} s", flush=True)
    summarise(rows, known.methods)
    runs.write_json(known.out, before + rows)


def written(out: Path) -> list[dict]:
    """The rows that an earlier call wrote there."""
    try:
        rows = json.loads(out.read_text(encoding="utf-8")) if out.exists() else []
    except ValueError:
        rows = None
    if not isinstance(rows, list):
        sys.exit(f"{str(out)!r} is there, and is no file of this script to add to. Choose another with --out.")
    return rows


def write_split(path: str, per_class: int, seed: int, folder: Path) -> Path:
    """A CSV of path, label and split (train or test)."""
    from PIL import Image

    from template.data.examples import load_examples

    examples = load_examples(path)
    held_out = "test" if "test" in examples.parts else "val"
    generator = np.random.default_rng(seed)
    chosen = np.concatenate([
        generator.permutation(np.flatnonzero(examples.labels == label))[:per_class]
        for label in range(len(examples.class_names))
    ])  # fmt: skip
    table = folder / f"split-{seed}.csv"
    with table.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["path", "label", "split"])
        for row, (image, label, part) in enumerate(zip(examples.images, examples.labels, examples.parts, strict=True)):
            if isinstance(image, np.ndarray):
                file = folder / f"{row:06d}.png"
                Image.fromarray(image).save(file)
            else:
                file = image.resolve()
            split = ("test" if part == held_out else "train") if part else ("train" if row in chosen else "test")
            writer.writerow([file, examples.class_names[label], split])
    return table


def guide(config: configuration.Config, _: Path) -> tuple[int, int, float]:
    """The transfer learning guide of Keras as a user would type it: 10 epochs of the head, 10 of everything."""
    import keras
    import tensorflow as tf

    from template.model.backbones import BACKBONES

    config, pixels, labels, train, test = _decoded(config)
    keras.utils.set_random_seed(config.train.seed)
    size, family = config.data.image_size, BACKBONES[config.backbone.name]
    start = time.perf_counter()
    alpha = {"alpha": config.backbone.alpha} if family.takes_alpha else {}
    base = family.build(include_top=False, weights=config.backbone.weights, input_shape=(size, size, 3),
                        input_tensor=keras.Input((size, size, 3)), **alpha)  # fmt: skip
    base.trainable = False
    inputs = keras.Input((size, size, 3))
    x = keras.layers.RandomFlip("horizontal")(inputs) if config.augment.hflip else inputs
    x = keras.layers.RandomRotation(0.1)(x)
    x = base(family.preprocess(x), training=False)
    x = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, keras.layers.Dense(int(labels.max()) + 1)(x))
    data = tf.data.Dataset.from_tensor_slices((pixels[train], labels[train])).shuffle(len(train))
    data = data.batch(32).prefetch(2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    model.fit(data, epochs=10, verbose=0)
    base.trainable = True
    model.compile(keras.optimizers.Adam(1e-5), loss)
    model.fit(data, epochs=10, verbose=0)
    seconds = time.perf_counter() - start
    predicted = model.predict(pixels[test].astype(np.float32), verbose=0).argmax(axis=1)
    return int((predicted == labels[test]).sum()), len(test), seconds


def probe(config: configuration.Config, _: Path) -> tuple[int, int, float]:
    """Logistic regression on frozen features of all training images and their mirror images; one test view."""
    from template.data.dataset import eval_dataset
    from template.model.backbones import build_backbone
    from template.model_selection.auto import init_model
    from template.train.features import FeatureCache

    config, pixels, labels, train, test = _decoded(config)
    start = time.perf_counter()
    cache = FeatureCache.of(config)
    base = build_backbone(config.backbone, config.data.image_size)
    model = init_model(base, config, [eval_dataset(pixels, train, labels)], cache)
    seconds = time.perf_counter() - start
    predicted = model.predict(pixels[test].astype(np.float32), verbose=0).argmax(axis=1)
    return int((predicted == labels[test]).sum()), len(test), seconds


def best_probe(config: configuration.Config, _: Path) -> tuple[int, int, float]:
    """`probe`, at the size and resizing that cross-validation prefers: 288 or 224 pixels; crop, pad or stretch."""
    from template.data.decode import decode
    from template.data.examples import load_examples
    from template.data.load import Parts
    from template.model_selection.auto import init_model, resolve_auto, without_auto
    from template.train.features import FeatureCache

    head = dataclasses.replace(config.head, feature_levels=1)
    tta = dataclasses.replace(config.tta, center_zoom=False)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, resize="auto"), head=head, tta=tta)
    decoded = functools.cache(functools.partial(decode, load_examples(config.data.path, config.data.class_folders)))
    examples, _ = decoded(without_auto(config).data)
    parts = Parts(examples, lambda data, _: decoded(data)[1], np.arange(len(examples)))
    start = time.perf_counter()
    cache = FeatureCache.of(config)
    images = functools.partial(parts.plain, "train")
    config, base, _ = resolve_auto(config, images, cache)
    model = init_model(base, config, [images(config.data)], cache)
    seconds = time.perf_counter() - start
    test = parts.plain("test", config.data)
    predicted = model.predict(test.read(0, np.arange(len(test))).astype(np.float32), verbose=0).argmax(axis=1)
    return int((predicted == test.labels).sum()), len(test), seconds


def ours(config: configuration.Config, scratch: Path) -> tuple[int, int, float, dict]:
    """What scripts/train.py does; and where its seconds went."""
    return _run(config, runs.new_folder(scratch, "ours"))


def _run(config: configuration.Config, folder: Path) -> tuple[int, int, float, dict]:
    from template import recipe

    metrics = recipe.run(config, folder)
    spent = metrics["seconds"]
    seconds = spent["total"] - sum(spent[phase] for phase in ("decode", "audit", "evaluation", "diagnosis", "report"))
    test = metrics["test"]
    return round(test["accuracy"]["value"] * test["images"]), test["images"], seconds, spent


def student(config: configuration.Config, scratch: Path) -> tuple[int, int, float, dict]:
    """`ours`, taught by a run of `TEACHER` on the same images; seconds are those of both."""
    folder = runs.new_folder(scratch, "teacher")
    large = dataclasses.replace(config, backbone=configuration.Backbone(name=TEACHER))
    correct, tested, before, _ = _run(large, folder)
    print(f"  teacher: {correct / tested:.4f} in {before:.1f} s")
    taught = dataclasses.replace(config, train=dataclasses.replace(config.train, teachers=(str(folder),)))
    correct, tested, seconds, spent = _run(taught, runs.new_folder(scratch, "student"))
    return correct, tested, before + seconds, spent | {"teacher": before}


def networks(config: configuration.Config, _: Path) -> tuple[int, int, float, dict]:
    """`probe` of the network that `backbone.name=auto` picks; and by how much it is behind the best on test images."""
    from template.data.decode import decode
    from template.data.examples import load_examples
    from template.data.load import Parts
    from template.model.at_hand import candidates, label
    from template.model.backbones import build_backbone
    from template.model_selection.auto import init_model, without_auto
    from template.model_selection.backbone import best, evaluate_candidates
    from template.train.features import FeatureCache

    decoded = functools.cache(functools.partial(decode, load_examples(config.data.path)))
    examples, _ = decoded(without_auto(config).data)
    parts = Parts(examples, lambda data, _: decoded(data)[1], np.arange(len(examples)))
    images, cache, start = functools.partial(parts.plain, "train"), FeatureCache.of(config), time.perf_counter()
    found, groups = evaluate_candidates(config, candidates(config.backbone), images, cache)
    picked, seconds, hits = found.index(best(found, groups)), time.perf_counter() - start, []
    for one in found:
        trial = without_auto(dataclasses.replace(config, backbone=one.backbone))
        base, test = build_backbone(one.backbone, trial.data.image_size), parts.plain("test", trial.data)
        model = init_model(base, trial, [images(trial.data)], cache)
        pixels = test.read(0, np.arange(len(test))).astype(np.float32)
        hits.append(model.predict(pixels, verbose=0).argmax(axis=1) == test.labels)
        mark = " <- auto" if one is found[picked] else ""
        print(f"  {label(one.backbone):<22} cross-entropy {one.cross_entropy:.3f}, test {hits[-1].mean():.4f}{mark}")
    behind = np.max([hit.mean() for hit in hits]) - hits[picked].mean()
    ahead = hits[int(np.argmax([hit.mean() for hit in hits]))].astype(float) - hits[picked]
    error = ahead.std(ddof=1) / np.sqrt(len(ahead))
    print(f"  auto is {behind:.4f} behind the best on test images, of which the paired standard error is {error:.4f}")
    return int(hits[picked].sum()), len(ahead), seconds, {"behind": float(behind), "standard_error": float(error)}


METHODS = {
    "guide": guide,
    "probe": probe,
    "best_probe": best_probe,
    "ours": ours,
    "student": student,
    "networks": networks,
}


def summarise(rows: list[dict], methods: list[str]) -> None:
    """Print mean accuracy with the 95 % interval of one run's test images, and mean seconds."""
    from template.evaluate.intervals import wilson_interval

    print(f"\n{'method':<12}{'accuracy':<28}seconds")
    for method in methods:
        mine = [row for row in rows if row["method"] == method]
        accuracy = np.mean([row["correct"] / row["tested"] for row in mine])
        interval = wilson_interval(round(accuracy * mine[0]["tested"]), mine[0]["tested"])
        seconds = np.mean([row["seconds"] for row in mine])
        print(f"{method:<12}{accuracy:.4f} [{interval['low']:.4f}, {interval['high']:.4f}]   {seconds:.1f}")


def _decoded(config: configuration.Config) -> tuple:
    """The configuration without `auto`, pixels, labels, and the rows of the training and test part."""
    from template.data.decode import decode
    from template.data.examples import load_examples
    from template.model_selection.auto import without_auto

    config = without_auto(config)
    examples, pixels = decode(load_examples(config.data.path, config.data.class_folders), config.data)
    everything = pixels[np.arange(len(pixels))]
    return config, everything, examples.labels, *(np.flatnonzero(examples.parts == part) for part in ("train", "test"))


if __name__ == "__main__":
    main()
