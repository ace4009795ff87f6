"""Cross-validate a whole recipe: every image is predicted by a network that has not seen it.

    python scripts/cross_validate.py --data.path=FOLDER
    python scripts/cross_validate.py --data.path=FOLDER --folds 10 --repeats 3
    python scripts/cross_validate.py --data.path=FOLDER --refit    # and at last a network that learns from all images
    python scripts/cross_validate.py --resume runs/20260101-120000-cv-mobilenet

For data too small for a test part: 100 images give an accuracy with the interval of 100 images. Takes the settings of
train.py. Without data.test_fraction all images are divided into folds, but for those of a test part that is given.
Exit code: 0, 1 if it could not end, 2 if settings cannot be used, 130 or 143 if it was stopped.
"""

import argparse
import sys
from pathlib import Path

from template import config as configuration
from template import progress, runs, system
from template.data.sources.files import require_outside
from template.data.sources.names import DataError
from template.evaluate.intervals import percent


@runs.script()
def main() -> None:
    """Check the settings, which takes no TensorFlow; then train fold by fold."""
    clock = progress.Timer()
    config, folder, known = parse()
    resume = f"python scripts/cross_validate.py --resume {system.quote(str(folder))}{' --refit' * known.refit}"
    message = f"Stopped. Finished folds are kept, and what was saved of this one. Go on with: {resume}"
    with runs.graceful_stop(message), progress.without_messages(known.quiet):
        with clock("import"):
            runs.import_tensorflow()
            from template import recipe
            from template.search import cross_validate
        try:
            scores = cross_validate.cross_validate(config, folder, known.folds, known.repeats, clock)
            if known.refit:
                cross_validate.refit(config, folder)
        except recipe.ERRORS as error:
            if not known.resume and runs.discard(folder):
                sys.exit(f"\n{error}\n(nothing was trained, and no folder is left of it: the same command starts anew)")
            sys.exit(f"\n{error}\n(nothing of yours was deleted; the folder is {folder}; to resume: {resume})")
    where = folder / "final" if known.refit else folder
    print(
        f"\ncross-validated accuracy {percent(scores['accuracy'])} on {scores['images']} predictions in "
        f"{len(scores['each'])} folds, {clock.total():.0f} s in all\nreport:  {where / 'report.html'}"
    )
    if known.refit:
        print(f"predict: python scripts/predict.py --run {system.quote(str(where))} IMAGE_OR_FOLDER")


def parse() -> tuple[configuration.Config, Path, argparse.Namespace]:
    """Command line to configuration, folder and folds; leaves with a message if a setting is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=5, help="in how many parts the images are divided (default: 5)")
    words = "how often they are divided anew (default: 1; more where there are fewer than 100 images)"
    parser.add_argument("--repeats", type=int, default=1, help=words)
    words = "train on all images at last, into final/; its report carries the cross-validated scores"
    parser.add_argument("--refit", action="store_true", help=words)
    parser.add_argument("--quiet", action="store_true", help="print warnings and the result only")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where its folder goes (default: runs)")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with an interrupted one, as it was begun")
    config, known = configuration.parse(parser, ["data.test_fraction=0"])
    if known.folds < 2 or known.repeats < 1:
        parser.error(
            f"Expected --folds of 2 or more and --repeats of 1 or more. Received: {known.folds}, {known.repeats}"
        )
    try:
        if known.resume:
            how = runs.read_json(known.resume / "folds.json")
            known.folds, known.repeats = how["folds"], how["repeats"]
            return configuration.load(known.resume / "config.toml"), known.resume, known
        configuration.require_single_label(config, "cross_validate.py")
        config = configuration.absolute(config)
        require_outside(config.data.path, {"--runs": known.runs, "--data.cache": Path(config.data.cache)})
        runs.check_output(Path(config.data.cache), "folder", "--data.cache")
        folder = runs.new_folder(known.runs, f"cv-{config.backbone.short_name}")
        runs.write_json(folder / "folds.json", {"folds": known.folds, "repeats": known.repeats})
        runs.write_text(folder / "config.toml", configuration.to_toml(config))
    except (configuration.ConfigError, DataError) as error:
        parser.exit(2, f"{error}\n")
    except OSError as error:
        parser.exit(2, f"{str(error.filename)!r} cannot be used: {error.strerror}.\n")
    return config, folder, known


if __name__ == "__main__":
    main()
