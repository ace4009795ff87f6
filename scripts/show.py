"""Show what enters the network: a few images of every class, as they are and as training sees them, epoch by epoch.

    python scripts/show.py --data.path=FOLDER [--config RECIPE] [--augment.policy=heavy] [--train.mixup=0.2]

Takes the settings of train.py, changes nothing, and needs no weights. Draws a row for each image, cut pixel by pixel
from the batches of the first stage, with the label that they give it; where images are mixed, with the share of each
class. Exit code: 0, or 2 if settings or images cannot be used.
"""

import argparse
import dataclasses
from pathlib import Path

from PIL import Image

from template import config as configuration
from template import runs

EPOCHS = 5


@runs.script()
def main() -> None:
    """Read the settings as train.py does, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("show.png"), help="image to write (default: show.png)")
    config, known = configuration.parse(parser)
    runs.check_output(known.out, "file")
    runs.import_tensorflow()
    from template import recipe

    try:
        image = drawn(config)
    except recipe.ERRORS as error:
        parser.exit(2, f"{error}\n")
    with runs.replacing(known.out) as temporary:
        image.save(temporary, format="PNG")
    print(f"look at {known.out}: left each image as it is, then as it enters the network. Could you still name it?")


def drawn(config: configuration.Config) -> Image.Image:
    """The grid for a recipe, and words on what it cannot show."""
    from template.data.load import load_data
    from template.diagnose.grids import epochs_grid
    from template.model_selection.auto import without_auto
    from template.model_selection.depth import with_stages
    from template.train.one_stage import batch_size, mixing_of

    config = without_auto(config)
    config, parts = load_data(config, config.data)
    config = with_stages(config, len(parts.rows("train")))
    if not config.stages:
        print("This recipe has no stage; shown is what one would see (--stages.0.unfreeze=1).")
    stage = config.stages[0] if config.stages else configuration.Stage(unfreeze=1)
    plain, augmented = parts.plain("train", config.data), parts.augmented("train", config)
    if stage.unfreeze != "all":  # activations of frozen blocks are stored, for a few views
        views = min(stage.cached_augmentations or stage.epochs, stage.epochs)
        read = augmented.read
        augmented = dataclasses.replace(augmented, read=lambda epoch, i: read(epoch % views, i))
        if config.train.mixup or config.train.cutmix:
            print("Mixed are activations of the frozen blocks; shown are the pixels, mixed by the same shares.")
    mixing = mixing_of(config.train, stage, 0, maps=stage.unfreeze != 0)
    epochs = min(EPOCHS, stage.epochs)
    settings = dataclasses.replace(config.train, batch_size=batch_size(stage, config.train))
    return epochs_grid(plain, augmented, parts.examples.class_names, settings, mixing, epochs)


if __name__ == "__main__":
    main()
