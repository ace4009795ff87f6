"""Suggest a learning rate for the first stage of a recipe, by a range test (Smith 2017).

    python scripts/find_lr.py --data.path=FOLDER [--config RECIPE] [--stages.0.unfreeze=1] [--stages.0.optimizer=sgd]

Takes the settings of train.py, trains a copy of the network for a hundred steps, each longer than the last, and draws
the loss (find_lr.png). Suggested is a tenth of the step size at which the loss is lowest; or at which it explodes, if
the head begins as a fitted regression and is at its lowest from the start. The first option of `auto` is taken. Exit
code: 0 if a rate was found, 1 if not, 2 if settings or images cannot be used.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from template import config as configuration
from template import runs


def main() -> None:
    """Read the settings as train.py does, sweep, draw and say."""
    runs.any_terminal()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("find_lr.png"), help="image to write (default: find_lr.png)")
    config, known = configuration.parse(parser)
    runs.check_output(known.out, "file")
    runs.import_tensorflow()
    from template import recipe
    from template.evaluate import plots
    from template.train.range_test import best_rate

    try:
        stage, rates, losses = swept(config)
    except recipe.ERRORS as error:
        parser.exit(2, f"{error}\n")
    found = best_rate(rates, losses)
    plots.save(plots.learning_rates(rates, losses, found), known.out)
    print(f"loss by learning rate: {known.out}")
    if found is None:
        sys.exit("The loss neither fell nor exploded: look at the image, and at the images (scripts/preflight.py).")
    print(f"suggested: --stages.0.learning_rate={found:.1g} (the recipe has {stage.learning_rate:g})")


def swept(config: configuration.Config) -> tuple[configuration.Stage, np.ndarray, np.ndarray]:
    """First stage of a recipe, and what `sweep` says of it."""
    from template import recipe
    from template.data.pipeline import eval_dataset, train_dataset
    from template.data.split import clusters
    from template.model.backbones import build_backbone
    from template.model.build import depths, freeze
    from template.train.begin import init_model, without_auto
    from template.train.features import FeatureCache
    from template.train.range_test import sweep
    from template.train.stages import TrainContext, compile_stage

    config = without_auto(config)
    recipe.set_seed_and_precision(config.train)
    config, examples, see = recipe.load_data(config)
    rows = np.flatnonzero(examples.parts == "train")
    config = recipe.with_stages(config, len(rows))
    if not config.stages:
        raise configuration.ConfigError("This recipe has no stage to find a rate for; add --stages.0.unfreeze=1.")
    cache, limit = Path(config.data.cache).expanduser(), config.data.cache_gb * 2**30
    store = FeatureCache(cache, limit, config.train.batch_size, runs.Timer())
    train = train_dataset(see(config.data), rows, examples.labels, config.augment, config.train.seed)
    base = build_backbone(config.backbone, config.data.image_size)
    plain = eval_dataset(see(config.data), rows, examples.labels, clusters(examples))
    model = init_model(base, config, [plain], store)
    start = [variable.numpy() for variable in model.variables]
    how = TrainContext(config.backbone, config.head, config.stages, config.train, store, start, examples.class_names)
    stage = config.stages[0]
    freeze(model, config.backbone, stage.unfreeze)
    network, inputs, _ = compile_stage(model, stage, [train], None, how)
    return stage, *sweep(network, inputs, stage, config.train, depths(model, config.backbone))


if __name__ == "__main__":
    main()
