"""Does `backbone.name=auto` pick the right network? What cross-validation says of each, and what test images say.

    python benchmarks/backbones.py --data.path=FOLDER --per-class 50

FOLDER is what accuracy.py takes. The networks that `auto` compares are compared here by the same cross-validation on
the training images; then a linear probe of each is fitted on all of them and measured on the test images, one view.
Printed: both accuracies of each, which one `auto` picks, and by how much it is behind the one that test images like
best, with the paired standard error of that difference.
"""

import argparse
import dataclasses
import functools
import sys
import tempfile
from pathlib import Path

import numpy as np
from accuracy import RECIPE, write_split

from template import config as configuration
from template import runs


def main() -> None:
    """Compare all candidates on every seed."""
    runs.any_terminal()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-class", type=int, default=50, help="training images per class (default: 50)")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds (default: 1)")
    known, rest = parser.parse_known_args()
    try:
        config = configuration.load(RECIPE, list(configuration.pair_up(rest)))
    except configuration.ConfigError as error:
        sys.exit(str(error))
    runs.import_tensorflow()
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(known.seeds):
            table = write_split(config.data.path, known.per_class, seed, Path(scratch))
            data = dataclasses.replace(config.data, path=str(table), cache=str(Path(scratch) / "cache"))
            train = dataclasses.replace(config.train, seed=seed)
            compare(dataclasses.replace(config, data=data, train=train), seed)


def compare(config: configuration.Config, seed: int) -> None:
    """Print a line for each network, and how the pick fares."""
    from template.data.decode import decode
    from template.data.examples import load_examples
    from template.data.load import Parts
    from template.model.at_hand import candidates, label
    from template.model_selection.auto import without_auto
    from template.model_selection.backbone import best, evaluate_candidates
    from template.train.features import FeatureCache

    backbones = candidates(config.backbone)
    decoded = functools.cache(functools.partial(decode, load_examples(config.data.path)))
    examples, _ = decoded(without_auto(config).data)
    parts = Parts(examples, lambda data: decoded(data)[1], np.arange(len(examples)))
    cache = FeatureCache.of(config)
    found, groups = evaluate_candidates(config, backbones, functools.partial(parts.plain, "train"), cache)
    hits = [test_hits(dataclasses.replace(config, backbone=one.backbone), parts, cache) for one in found]
    picked = found.index(best(found, groups))
    winner = int(np.argmax([hit.mean() for hit in hits]))
    for one, hit in zip(found, hits, strict=True):
        mark = " <- auto" if one is found[picked] else ""
        values = f"cross-entropy {one.cross_entropy:.3f}, accuracy {one.accuracy['value']:.3f}, test {hit.mean():.3f}"
        print(f"seed {seed} {label(one.backbone):<20} {values}, {one.milliseconds:.1f} ms{mark}", flush=True)
    difference = hits[winner].astype(float) - hits[picked]
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    print(
        f"seed {seed} auto is {difference.mean():.4f} behind the best on test, standard error {error:.4f}", flush=True
    )


def test_hits(config: configuration.Config, parts: object, cache: object) -> np.ndarray:
    """Whether each test image is right by a linear probe on all training images, bool [n]."""
    from template.model.backbones import build_backbone
    from template.model_selection.auto import init_model, without_auto

    config = without_auto(config)
    train, test = (parts.plain(part, config.data) for part in ("train", "test"))
    model = init_model(build_backbone(config.backbone, config.data.image_size), config, [train], cache)
    pixels = test.read(0, np.arange(len(test))).astype(np.float32)
    return model.predict(pixels, verbose=0).argmax(axis=1) == test.labels


if __name__ == "__main__":
    main()
