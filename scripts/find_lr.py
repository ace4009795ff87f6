"""Suggest a learning rate for the first stage of a recipe, by a range test (Smith 2017).

    python scripts/find_lr.py --data.path=FOLDER [--config RECIPE] [--stages.0.unfreeze=1] [--stages.0.optimizer=sgd]

Takes the settings of train.py, trains a copy of the network for a hundred steps, each longer than the last, and draws
the loss (find_lr.png). Suggested is a tenth of the step size at which the loss is lowest; or at which it explodes, if
the head begins as a fitted linear probe and is at its lowest from the start. The first option of `auto` is taken. Exit
code: 0 if a rate was found, 1 if not, 2 if settings or images cannot be used.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from template import config as configuration
from template import runs


@runs.script()
def main() -> None:
    """Read the settings as train.py does, sweep, draw and say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("find_lr.png"), help="image to write (default: find_lr.png)")
    config, known = configuration.parse(parser)
    runs.check_output(known.out, "file")
    runs.import_tensorflow()
    from template import recipe
    from template.diagnose.range_test import best_rate
    from template.evaluate import plots

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
    from template.data.load import load_data
    from template.diagnose.range_test import sweep
    from template.model.backbones import build_backbone
    from template.model.blocks import find_blocks
    from template.model_selection.auto import init_model, set_seed_and_precision, without_auto
    from template.model_selection.depth import with_stages
    from template.train.features import FeatureCache
    from template.train.one_stage import TrainContext, compile_stage

    config = without_auto(config)
    set_seed_and_precision(config.train)
    config, parts = load_data(config, config.data)
    config, cache = with_stages(config, len(parts.rows("train"))), FeatureCache.of(config)
    if not config.stages:
        raise configuration.ConfigError("This recipe has no stage to find a rate for; add --stages.0.unfreeze=1.")
    base = build_backbone(config.backbone, config.data.image_size)
    model = init_model(base, config, [parts.plain("train", config.data)], cache)
    initial, names = [variable.numpy() for variable in model.variables], parts.examples.class_names
    blocks, stage = find_blocks(model, config.backbone), config.stages[0]
    context = TrainContext(blocks, config.stages, config.train, cache, initial, names)
    return stage, *sweep(compile_stage(model, stage, [parts.augmented("train", config)], None, context))


if __name__ == "__main__":
    main()
