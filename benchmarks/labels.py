"""How many labels are saved by choosing which images to label (`scripts/label_next.py`) instead of drawing them.

    python benchmarks/labels.py --data.path=FOLDER --first 5 --step 50

Hides the labels of a labelled data set, uncovers a few at random and then, step by step, those that `select_next` asks
for; beside it, the same number at random. After each step a linear probe of frozen features (one view) is fitted on
what is labelled and measured on a third of the images, which are held out. What is printed: accuracy by labels, mean of
the seeds, and how many labels the choice needs to be as accurate as chance is with twenty, thirty, forty and fifty per
class, as a part of those, with a 95 % interval over seeds (percentile bootstrap).
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

from template import config as configuration
from template import runs

RECIPE = Path(__file__).parent.parent / "configs" / "folder.toml"
TARGETS = (20, 30, 40, 50)


@runs.script()
def main() -> None:
    """Features once, then all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=5, help="labels per class at the beginning (default: 5)")
    parser.add_argument("--step", type=int, default=50, help="labels asked for at a time (default: 50)")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds (default: 5)")
    parser.add_argument("--out", type=Path, default=Path("labels.json"), help="JSON to write")
    known, rest = parser.parse_known_args()
    runs.check_output(known.out, "file")
    try:
        config = configuration.load(RECIPE, list(configuration.pair_up(rest)))
    except configuration.ConfigError as error:
        sys.exit(str(error))
    runs.import_tensorflow()
    features, labels = load_features(config)
    curves = {name: np.array([]) for name in ("random", "chosen")}
    for seed in range(known.seeds):
        counts, found = simulate(features, labels, known.first, known.step, seed)
        for name, curve in found.items():
            curves[name] = np.vstack([curves[name].reshape(-1, len(counts)), curve])
        print(f"seed {seed} done", flush=True)
    print("labels  " + "".join(f"{count:>7}" for count in counts))
    for name, rows in curves.items():
        print(f"{name:<8}" + "".join(f"{value:7.3f}" for value in rows.mean(axis=0)))
    rows = [row for per_class in TARGETS if (row := saved(curves, counts, per_class * int(labels.max() + 1)))]
    for row in rows:
        print(f"as accurate as {row['labels']} at random ({row['accuracy']:.3f}): {row['share']:.2f} of them "
              f"[{row['low']:.2f}, {row['high']:.2f}]")  # fmt: skip
    runs.write_json(known.out, {"data": config.data.path, "labels": counts, "rows": rows,
                                "curves": {name: rows.tolist() for name, rows in curves.items()}})  # fmt: skip


def load_features(config: configuration.Config) -> tuple[np.ndarray, np.ndarray]:
    """Features of all images as the head would see them, float32 [n, f], and labels."""
    from template.data.dataset import eval_dataset
    from template.data.decode import decode
    from template.data.examples import load_examples
    from template.model.backbones import build_backbone
    from template.model_selection.auto import probe_features, select_levels, without_auto
    from template.train.features import FeatureCache

    config = without_auto(config)
    config = dataclasses.replace(config, augment=dataclasses.replace(config.augment, hflip=False))
    examples, pixels = decode(load_examples(config.data.path, config.data.class_folders), config.data)
    images = eval_dataset(pixels, np.arange(len(examples)), examples.labels)
    base = build_backbone(config.backbone, config.data.image_size)
    found = probe_features(base, config, [images], FeatureCache.of(config))
    return select_levels(found, config.head)[0][0], examples.labels


def simulate(
    features: np.ndarray, labels: np.ndarray, first: int, step: int, seed: int
) -> tuple[list[int], dict[str, list[float]]]:
    """Numbers of labels, and the accuracies with so many, chosen and at random."""
    from scipy.special import softmax

    from template.deploy.label_next import select_next
    from template.train.linear_probe import fit_probe

    rng, classes = np.random.default_rng(seed), int(labels.max()) + 1
    by_class = [rng.permutation(np.flatnonzero(labels == label)) for label in range(classes)]
    test = np.concatenate([rows[: len(rows) // 3] for rows in by_class])
    pool = np.concatenate([rows[len(rows) // 3 :] for rows in by_class])
    start = np.concatenate([rows[len(rows) // 3 :][:first] for rows in by_class])
    curves, counts = {"random": [], "chosen": []}, []
    for name, curve in curves.items():
        known, counts = start, []
        while True:
            probe = fit_probe(features[None, known], labels[known], classes, seed, most_repeats=1)
            logits = features @ probe.kernel + probe.bias
            curve.append(float((logits[test].argmax(axis=1) == labels[test]).mean()))
            counts.append(len(known))
            left = np.setdiff1d(pool, known)
            if len(left) < step:
                break
            chosen = rng.permutation(len(left))[:step]
            if name == "chosen":
                chosen = select_next(softmax(logits[left].astype(float), axis=1), features[left], step, seed)
            known = np.concatenate([known, left[chosen]])
    return counts, curves


def saved(curves: dict[str, np.ndarray], counts: list[int], labels: int) -> dict | None:
    """Labels that the choice needs as a part of `labels` at random, with an interval over the seeds."""
    if not counts[0] < labels <= counts[-1]:
        return None
    target = float(np.interp(labels, counts, curves["random"].mean(axis=0)))

    def share(rows: np.ndarray) -> float:
        goal = np.interp(labels, counts, curves["random"][rows].mean(axis=0))
        mine = np.maximum.accumulate(curves["chosen"][rows].mean(axis=0))
        return float(np.interp(goal, mine, counts)) / labels

    rng, n = np.random.default_rng(0), len(curves["random"])
    drawn = np.array([share(rng.integers(0, n, n)) for _ in range(2000)])
    whole = share(np.arange(n))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"labels": labels, "accuracy": target, "share": whole, "low": float(low), "high": float(high)}


if __name__ == "__main__":
    main()
