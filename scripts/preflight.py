"""Check data, labels and network before a long run: a few minutes in which most mistakes show.

    python scripts/preflight.py --data.path=FOLDER [--config RECIPE] [--backbone.name=...]

Takes the settings of train.py and changes nothing of a run. Writes preflight.png (what enters the network, drawn from
the very tensors) and preflight.json. Exit code: 0 if every check passed, 1 if one did not, 2 if settings or pictures
cannot be used.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

from template import config as configuration
from template import runs

CONFIGS = Path(__file__).parent.parent / "configs"


def main() -> None:
    """Load as a run would, check, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="recipe; by default configs/folder.toml")
    parser.add_argument("--out", type=Path, default=Path("preflight"), help="folder to write to (default: preflight)")
    known, rest = parser.parse_known_args()
    from template.data.examples import DataError

    try:
        config = configuration.load(known.config or CONFIGS / "folder.toml", list(configuration.pair_up(rest)))
        runs.import_tensorflow()
        from template.model.backbones import WeightsError
    except configuration.ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    try:
        checks, numbers, picture = inspect(config)
    except (DataError, WeightsError, configuration.ConfigError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    for check in checks:
        print(f"{'ok  ' if check.passed else 'FAIL'}  {check.name}: {check.found} (expected: {check.expected})")
        if not check.passed:
            print(f"        {check.advice}")
    for name, value in numbers.items():
        print(f"      {name}: {value:.3f}")
    known.out.mkdir(parents=True, exist_ok=True)
    with runs.replacing(known.out / "preflight.png") as temporary:
        picture.save(temporary, format="PNG")
    runs.write_json(
        known.out / "preflight.json", {"checks": [dataclasses.asdict(check) for check in checks], "numbers": numbers}
    )
    print(f"look at {known.out / 'preflight.png'}: are these the pictures, and are these their labels?")
    sys.exit(int(not all(check.passed for check in checks)))


def inspect(config: configuration.Config) -> tuple[list, dict, object]:
    """All checks; validation accuracies that a run has to beat and seconds a look; what enters the network."""
    from template import recipe
    from template.data.decode import decode
    from template.data.examples import load_examples
    from template.data.images import load_image
    from template.data.pipeline import plain_source, training_source
    from template.data.split import split
    from template.model.backbones import build_backbone
    from template.model.build import attach, freeze
    from template.train import preflight
    from template.train.begin import begin, probe_features, probes, selected, settled
    from template.train.features import Store

    config, clock = settled(config), runs.Clock()
    recipe.prepare(config.train)
    examples, pixels = decode(load_examples(config.data.path), config.data)
    fractions = {"val_fraction": config.data.val_fraction, "test_fraction": config.data.test_fraction}
    examples = split(examples, **fractions, seed=config.data.split_seed)
    rows = {name: np.flatnonzero(examples.parts == name) for name in ("train", "val")}
    train, val = (plain_source(pixels, rows[name], examples.labels) for name in ("train", "val"))
    augmented = training_source(pixels, rows["train"], examples.labels, config.augment, config.train.seed)
    classes = len(examples.class_names)
    cache, limit = Path(config.data.cache).expanduser(), config.train.feature_cache_gb * 2**30
    store = Store(cache, limit, config.train.batch_size, clock)
    base = build_backbone(config.backbone, config.data.image_size)

    def fresh():
        return attach(base, config.backbone, config.head, np.bincount(train.labels, minlength=classes))

    check, picture = preflight.entering(augmented, examples.class_names, config.train.batch_size, config.train.seed)
    served = np.stack([load_image(examples.images[r], config.data.image_size, config.data.resize)
                       for r in rows["val"][:8]])  # fmt: skip
    model = fresh()
    freeze(model, config.backbone, 1 if probes(config) else "all")
    checks = [
        check,
        preflight.same_pixels(val.read(0, np.arange(len(served))), served),
        preflight.float32_out(model),
        preflight.loss_at_init(model, train),
        preflight.independent(model, train),
        preflight.overfits(fresh(), train),
        preflight.frozen_stays(model, train, classes, pretrained=config.backbone.weights != "none"),
        preflight.room(cache, 3 * (4 * 3 * model.count_params()) + limit + pixels.shape[0] * np.prod(pixels.shape[1:])),
    ]
    accuracy = None
    if probes(config):
        probed = begin(base, config, [train], store)
        features, held_out = (selected(probe_features(base, config, [s], store), config.head)[0] for s in (train, val))
        checks += [
            preflight.sees_the_pictures(probed, val),
            preflight.shuffled_labels(features, train.labels, held_out[0], val.labels, config.train.seed),
        ]
        head = probed.get_layer("logits")
        said = held_out[0] @ head.kernel.numpy() + head.bias.numpy()
        accuracy = float((said.argmax(axis=1) == val.labels).mean())
    numbers = {f"{name}, validation accuracy": value for name, value in preflight.baselines(train, val)}
    if accuracy is not None:
        numbers["logistic regression on frozen features, validation accuracy"] = accuracy
        if "features" in clock.seconds:  # not found from an earlier look
            looks = len(features) * len(train) + len(features) * len(val)
            numbers["pictures a second through the network"] = looks / clock.seconds["features"]
    return checks, numbers, picture


if __name__ == "__main__":
    main()
