"""What holds a finished run back, and what twice the pictures would bring.

    python scripts/diagnose.py --run runs/RUN

Compares training pictures with held-out ones, and draws a learning curve: logistic regression on frozen features of 10
to 100 percent of the training pictures, measured on validation, with a power law through it. Writes diagnosis.json and
learning_curve.png into the run's folder; test pictures are only counted as the run has counted them.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

from template import runs

SHARES = (0.1, 0.2, 0.4, 0.8, 1.0)
DRAWS = 3


def main() -> None:
    """Load the run and its pictures, diagnose, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    run = parser.parse_args().run
    runs.import_tensorflow()
    from template.config import ConfigError
    from template.data.examples import DataError
    from template.evaluate import plots
    from template.evaluate.diagnosis import diagnose, power_law
    from template.evaluate.predictions import Predictions
    from template.model.backbones import WeightsError

    try:
        trained, sizes, errors = examine(run)
    except (DataError, ConfigError, WeightsError) as error:
        sys.exit(str(error))
    said = Predictions.load(run / "predictions.npz")
    held_out = int((said.predicted == said.labels).sum()), len(said.labels)
    found = diagnose(trained, held_out)
    print(f"{found.verdict}: {found.because}\ntry:" + "".join(f"\n  - {line}" for line in found.try_next))
    result = {**dataclasses.asdict(found), "trained": trained, "held_out": held_out}
    if sizes:
        a, b = power_law(np.array(sizes), np.array(errors))
        result["learning_curve"] = {"sizes": sizes, "errors": errors, "scale": a, "exponent": b}
        now, twice = (a * n**-b for n in (sizes[-1], 2 * sizes[-1]))
        print("logistic regression, error on validation: "
              + ", ".join(f"{100 * e:.1f} % of {n}" for n, e in zip(sizes, errors, strict=True)))  # fmt: skip
        print(f"by the power law through these, twice the pictures: {100 * (now - twice):+.1f} points of accuracy")
        plots.save(plots.learning_curve(sizes, errors, a, b), run / "learning_curve.png")
    runs.write_json(run / "diagnosis.json", result)
    print(f"written: {run / 'diagnosis.json'}")


def examine(run: Path) -> tuple[tuple[int, int], list[int], list[float]]:
    """Right answers and number of training pictures; sizes and mean validation errors of the learning curve."""
    from template.data.decode import decode
    from template.data.examples import DataError, load_examples
    from template.data.pipeline import ordered_batches, plain_source
    from template.data.split import split, to_csv
    from template.deploy.predictor import load_run
    from template.model.backbones import build_backbone
    from template.train.begin import probe_features, probes, selected
    from template.train.features import Store
    from template.train.probe import fit_probe

    config, _, model = load_run(run)
    examples, pixels = decode(load_examples(config.data.path), config.data)
    fractions = {"val_fraction": config.data.val_fraction, "test_fraction": config.data.test_fraction}
    examples = split(examples, **fractions, seed=config.data.split_seed)
    if to_csv(examples) != (run / "split.csv").read_text(encoding="utf-8"):
        raise DataError(f"The pictures have changed since {str(run)!r} was trained.")
    train, val = (
        plain_source(pixels, np.flatnonzero(examples.parts == part), examples.labels) for part in ("train", "val")
    )
    classes = len(examples.class_names)
    said = model.predict(ordered_batches(train, classes, config.train.batch_size), verbose=0).argmax(axis=1)
    trained = int((said == train.labels).sum()), len(train)
    if not probes(config):
        return trained, [], []
    limit = config.train.feature_cache_gb * 2**30
    store = Store(Path(config.data.cache).expanduser(), limit, config.train.batch_size, runs.Clock())
    base = build_backbone(config.backbone, config.data.image_size)
    features, held_out = (selected(probe_features(base, config, [s], store), config.head)[0] for s in (train, val))
    sizes, errors = [], []
    for share in SHARES:
        wrong = []
        for draw in range(DRAWS if share < 1 else 1):
            order = np.random.default_rng([config.train.seed, draw]).permutation(len(train))
            rows = [order[train.labels[order] == label] for label in range(classes)]
            some = np.concatenate([mine[: max(2, round(share * len(mine)))] for mine in rows])
            probe = fit_probe(features[:, some], train.labels[some], classes, config.train.seed)
            wrong.append(((held_out[0] @ probe.kernel + probe.bias).argmax(axis=1) != val.labels).mean())
        sizes.append(len(some))
        errors.append(float(np.mean(wrong)))
    return trained, sizes, errors


if __name__ == "__main__":
    main()
