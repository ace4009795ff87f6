"""Compare pretrained networks on a folder of images: accuracy of a linear probe on each, and what each costs.

    python scripts/choose_backbone.py --data.path=FOLDER
    python scripts/choose_backbone.py --data.path=FOLDER --backbone.candidates='["resnet50", "efficientnetb0"]'

Takes the settings of train.py. Compared are the networks that are named, or those whose ImageNet weights are on this
machine. For each: out-of-fold accuracy and cross-entropy of the linear probe on the training images (validation and
test images are not looked at), milliseconds per image here, and megabytes of weights. Draws accuracy over time, and
prints the setting to use, which `--backbone.name=auto` chooses by itself. Exit code: 0, or 2 if settings or images
cannot be used.
"""

import argparse
import functools
from pathlib import Path

from template import config as configuration
from template import runs


@runs.script()
def main() -> None:
    """Read the settings as train.py does, compare, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path("choose_backbone.png")
    parser.add_argument("--out", type=Path, default=default, help=f"plot to write (default: {default})")
    config, known = configuration.parse(parser)
    runs.check_output(known.out, "file")
    runs.import_tensorflow()
    from template import recipe
    from template.data.load import load_data
    from template.evaluate import plots
    from template.model.at_hand import candidates, label
    from template.model_selection.auto import set_seed_and_precision, without_auto
    from template.model_selection.backbone import best, evaluate_candidates, pareto_front
    from template.train.features import FeatureCache

    try:
        backbones = candidates(config.backbone)
        set_seed_and_precision(config.train)
        config, parts = load_data(config, without_auto(config).data)
        images = functools.partial(parts.plain, "train")
        found, groups = evaluate_candidates(config, backbones, images, FeatureCache.of(config))
    except recipe.ERRORS as error:
        parser.exit(2, f"{error}\n")
    if len(found) == 1:
        print("the weights of one network only are on this machine: for others, name them with --backbone.candidates")
    front, chosen = pareto_front(found), best(found, groups).backbone
    print(f"{len(parts.rows('train'))} training images; * no other network is both faster and better")
    print(f"{'network':<22}{'accuracy':<24}{'cross-entropy':<18}{'ms/image':>8}{'MB':>8}")
    for one in found:
        low, high = one.accuracy["low"], one.accuracy["high"]
        accuracy = f"{one.accuracy['value']:.3f} [{low:.3f}, {high:.3f}]"
        loss = f"{one.cross_entropy:.3f} +- {one.standard_error:.3f}"
        star = "*" if one in front else ""
        print(f"{label(one.backbone):<22}{accuracy:<24}{loss:<18}{one.milliseconds:8.1f}{one.megabytes:8.1f} {star}")
    times, accuracies = [one.milliseconds for one in found], [one.accuracy for one in found]
    places = [found.index(one) for one in front]
    plots.save(plots.accuracy_over_time([label(b.backbone) for b in found], times, accuracies, places), known.out)
    print(f"accuracy over time: {known.out}")
    width = f" --backbone.alpha={chosen.alpha:g}" if chosen.alpha != 1 else ""
    print(f"suggested: --backbone.name={chosen.name}{width} (the fastest within a standard error of the best)")


if __name__ == "__main__":
    main()
