"""What images without labels (`data.unlabelled`) bring: accuracy with them and without, paired.

    python benchmarks/unlabelled.py --data.path=FOLDER --per-class 5 --seeds 10 --data.image_size=224
    python benchmarks/unlabelled.py --data.path=FOLDER --per-class 5 --runs --stages=[]

A third of each class is held out to measure, `--per-class` images keep their labels, and all others lose them. By
default a linear probe is fitted on stored features (the top block's, or those of `--head.feature_levels` blocks), with
labels alone and by self-training; with `--strangers OTHER` that is done once more, with images of another data set
among those without labels (`--share` of them). `--runs`: whole runs in place of probes, with the settings given.

What is printed: accuracy, and the mean gain with a 95 % interval (percentile bootstrap of seeds, and of the test images
of each). *as chosen* counts no gain where cross-validation of the images with labels said not to use the others.
"""

import argparse
import csv
import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np

from template import config as configuration
from template import runs

RECIPE = Path(__file__).parent.parent / "configs" / "folder.toml"


@runs.script()
def main() -> None:
    """Measure every seed, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-class", type=int, default=5, help="images per class that keep their labels (default: 5)")
    parser.add_argument("--seeds", type=int, default=10, help="how many seeds (default: 10)")
    parser.add_argument("--strangers", help="folder of images of other classes, some of which are put among the others")
    parser.add_argument("--share", type=float, default=0.3, help="share of strangers (default: 0.3)")
    parser.add_argument("--runs", action="store_true", help="whole runs (slow) in place of probes on stored features")
    parser.add_argument("--out", type=Path, default=Path("unlabelled.json"), help="JSON to write")
    known, rest = parser.parse_known_args()
    runs.check_output(known.out, "file")
    try:
        config = configuration.load(RECIPE, list(configuration.pair_up(rest)))
    except configuration.ConfigError as error:
        sys.exit(str(error))
    runs.import_tensorflow()
    found = (of_runs if known.runs else of_probes)(config, known)
    alone = found.pop("labels alone")
    rows = [summary(name, alone, other) for name, other in found.items()]
    print(f"{'labels alone':<28}{np.mean([each.mean() for each in alone]):.3f}")
    for row in rows:
        print("{name:<28}{accuracy:.3f}   gain {gain:+.3f} [{low:+.3f}, {high:+.3f}]".format(**row))
    seeds = {name: [float(each.mean()) for each in one] for name, one in ({"labels alone": alone} | found).items()}
    runs.write_json(
        known.out, {"data": config.data.path, "per_class": known.per_class, "rows": rows, "accuracies": seeds}
    )


def divide(labels: np.ndarray, per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows that keep their labels, that lose them, and that are held out to measure."""
    rng, found = np.random.default_rng(seed), ([], [], [])
    for label in range(int(labels.max()) + 1):
        rows = rng.permutation(np.flatnonzero(labels == label))
        held = len(rows) // 3
        for part, chosen in zip(found, (rows[held:][:per_class], rows[held:][per_class:], rows[:held]), strict=True):
            part.append(chosen)
    return tuple(np.sort(np.concatenate(part)) for part in found)


def of_probes(config: configuration.Config, known: argparse.Namespace) -> dict[str, list[np.ndarray]]:
    """Of linear probes on stored features: by method, which test images of each seed are classified correctly."""
    from template.evaluate.intervals import paired_z
    from template.model_selection.unlabelled import CLEARLY_WORSE, monitored_losses, strange
    from template.train.linear_probe import fit_probe, folds
    from template.train.self_training import self_train

    features, labels, widths = load_features(config, config.data.path)
    others = load_features(config, known.strangers)[0] if known.strangers else features[:, :0]
    found, classes = {}, int(labels.max()) + 1
    for seed in range(known.seeds):
        few, pool, test = divide(labels, known.per_class, seed)
        alone = fit_probe(features[:, few], labels[few], classes, seed, widths)
        divisions = folds(labels[few], classes, seed, 5)

        def correct(probe, test=test) -> np.ndarray:
            logits = features[:, test] @ probe.kernel + probe.bias
            p = np.exp(logits - logits.max(axis=-1, keepdims=True))
            return (p / p.sum(axis=-1, keepdims=True)).mean(axis=0).argmax(axis=-1) == labels[test]

        def taught(pool, few=few, alone=alone, divisions=divisions, name=""):
            odd = strange(features[0, few], None, pool[0])
            probe = self_train(features[:, few], labels[few], pool[:, ~odd], alone.strength, divisions, widths)
            z = paired_z(*(monitored_losses(each, labels[few], config.train.monitor) for each in (probe, alone)))
            print(f"  {name}: {odd.sum()} of {len(odd)} strange, {z:+.1f} standard errors", flush=True)
            return probe if z > CLEARLY_WORSE else alone, probe

        chosen, always = taught(features[:, pool], name=f"seed {seed}")
        measured = {"labels alone": alone, "self-training, always": always, "self-training, as chosen": chosen}
        if known.strangers:
            number = min(others.shape[1], round(len(pool) * known.share / (1 - known.share)))
            rows = np.random.default_rng(seed).permutation(others.shape[1])[:number]
            mixed = np.concatenate([features[:, pool], others[:, rows]], axis=1)
            measured["with strangers, as chosen"] = taught(mixed, name="with strangers")[0]
        for name, probe in measured.items():
            found.setdefault(name, []).append(correct(probe))
    return found


def load_features(config: configuration.Config, path: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Features of all images as the probe of a run sees them, float32 [views, n, f], labels, and features a level."""
    from template.data.dataset import eval_dataset
    from template.data.decode import decode
    from template.data.examples import load_examples
    from template.model.backbones import build_backbone
    from template.model_selection.auto import probe_features, select_levels, without_auto
    from template.train.features import FeatureCache

    config = without_auto(config)
    examples, pixels = decode(load_examples(path), config.data)
    images = eval_dataset(pixels, np.arange(len(examples)), examples.labels)
    base = build_backbone(config.backbone, config.data.image_size)
    features, widths = select_levels(probe_features(base, config, [images], FeatureCache.of(config)), config.head)
    return features, examples.labels, widths


def of_runs(config: configuration.Config, known: argparse.Namespace) -> dict[str, list[np.ndarray]]:
    """Of whole runs: by method, which test images of each seed are classified correctly."""
    from template import recipe
    from template.data.audit.duplicates import near_pairs
    from template.data.audit.facts import read_facts
    from template.data.examples import load_examples
    from template.evaluate.predictions import Predictions

    examples, found = load_examples(config.data.path), {}
    twice = np.unique(near_pairs(read_facts(examples).thumbnails)).astype(int)  # would be refused beside their copies
    others = load_examples(known.strangers).images if known.strangers else []
    for seed in range(known.seeds):
        few, pool, test = divide(examples.labels, known.per_class, seed)
        pool = np.setdiff1d(pool, twice)
        number = min(len(others), round(len(pool) * known.share / (1 - known.share)))
        strangers = [others[row] for row in np.random.default_rng(seed).permutation(len(others))[:number]]
        with tempfile.TemporaryDirectory() as scratch:
            table, folder = Path(scratch) / "labelled.csv", Path(scratch) / "unlabelled"
            with table.open("w", newline="") as out:
                writer = csv.writer(out)
                writer.writerow(["path", "label", "split"])
                for part, rows in (("train", few), ("test", test)):
                    names = [examples.class_names[label] for label in examples.labels[rows]]
                    files = [examples.images[row].resolve() for row in rows]
                    writer.writerows(zip(files, names, [part] * len(rows), strict=True))
            folder.mkdir()
            for place, file in enumerate([*(examples.images[row] for row in pool), *strangers]):
                (folder / f"{place:05d}{file.suffix}").symlink_to(file.resolve())
            for name, unlabelled in {"labels alone": "", "with images without labels": str(folder)}.items():
                data = dataclasses.replace(config.data, path=str(table), unlabelled=unlabelled)
                how = dataclasses.replace(config, data=data, train=dataclasses.replace(config.train, seed=seed))
                run = runs.new_folder(Path(scratch), "run")
                metrics = recipe.run(how, run)
                predictions = Predictions.load(run / "predictions.npz")
                found.setdefault(name, []).append(predictions.predicted == predictions.labels)
                seconds = metrics["seconds"]["total"]
                print(f"seed {seed} {name}: {found[name][-1].mean():.4f} in {seconds:.0f} s", flush=True)
    return found


def summary(name: str, alone: list[np.ndarray], other: list[np.ndarray]) -> dict[str, float | str]:
    """Accuracy and paired gain, with an interval over seeds and their test images."""
    gains = [after.astype(float) - before for before, after in zip(alone, other, strict=True)]
    rng = np.random.default_rng(0)
    drawn = [
        np.mean([rng.choice(gains[seed], len(gains[seed])).mean() for seed in rng.integers(0, len(gains), len(gains))])
        for _ in range(2000)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    mean = {"accuracy": np.mean([each.mean() for each in other]), "gain": np.mean([gain.mean() for gain in gains])}
    return {"name": name} | {key: float(value) for key, value in (mean | {"low": low, "high": high}).items()}


if __name__ == "__main__":
    main()
