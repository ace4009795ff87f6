"""Train a classifier on a folder of images and report how good it is.

python scripts/train.py                                    # handwritten digits, nothing to download
python scripts/train.py --data.path=FOLDER                 # your own images, one sub-folder per class
python scripts/train.py --config configs/folder.toml --data.path=FOLDER --backbone.name=resnet50
python scripts/train.py --data.path=FOLDER --preflight     # check everything first, as preflight.py does
python scripts/train.py --resume runs/20260101-120000-mobilenet
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from template import config as configuration
from template import progress, runs, system
from template.data.sources.files import require_outside
from template.data.sources.names import DataError

CONFIGS = Path(__file__).parent.parent / "configs"


@runs.script()
def main() -> None:
    """Check the settings, which takes no TensorFlow; then run."""
    clock = progress.Timer()
    config, folder, known = parse(sys.argv[1:])
    new = not (folder / "config.toml").exists()
    if new:
        try:
            runs.write_text(folder / "config.toml", configuration.to_toml(config))  # from here on it can be resumed
        except OSError as error:
            sys.exit(
                f"{str(folder)!r} cannot be written to: {error.strerror}. Make room, or choose another with --runs."
            )
    resume = f"python scripts/train.py --resume {system.quote(str(folder))}"
    seconds = config.train.checkpoint_seconds
    repeated = f"{seconds:g} seconds of training and one epoch are" if seconds else "one epoch is"
    stopped = f"Stopped. What was saved is whole; at most {repeated} repeated. Go on with: {resume}"
    with runs.graceful_stop(stopped), progress.without_messages(known.quiet):
        with clock("import"):
            runs.import_tensorflow()
            from template import recipe
            from template.diagnose.preflight import preflight
        try:
            if known.preflight:
                with clock("preflight"):
                    passed = preflight(config, folder)
                if not passed:
                    sys.exit("\nNothing was trained. Correct what failed, or go on without --preflight.")
            with progress.step("run"):
                metrics = recipe.run(config, folder, clock)
        except recipe.ERRORS as error:
            if new and runs.discard(folder):
                sys.exit(f"\n{error}\n(nothing was trained, and no folder is left of it: the same command starts anew)")
            sys.exit(f"\n{error}\n(nothing of yours was deleted; the run's folder is {folder}; to resume: {resume})")
    test = metrics["test"] or metrics["val"]
    kind = "mean_average_precision" if "mean_average_precision" in test else "accuracy"  # several labels an image
    value, quoted = test[kind], system.quote(str(folder))
    print(
        f"\n{'test' if metrics['test'] else 'validation'} {kind.replace('_', ' ')} {value['value']:.3f} "
        f"[{value['low']:.3f}, {value['high']:.3f}] on {test['images']} images, {clock.total():.0f} s in all\n"
        f"report:  {folder / 'report.html'}\npredict: python scripts/predict.py --run {quoted} IMAGE_OR_FOLDER"
    )


def parse(arguments: list[str]) -> tuple[configuration.Config, Path, argparse.Namespace]:
    """Command line to configuration, run folder and options; leaves with a message if a setting is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="settings (recipe first, then these; later wins):\n" + configuration.describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, help="recipe; by default configs/digits.toml, with a path folder.toml")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders go (default: runs)")
    parser.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with an interrupted run (few settings may change)"
    )
    parser.add_argument("--preflight", action="store_true", help="check data, network and machine first (preflight.py)")
    parser.add_argument("--quiet", action="store_true", help="print warnings and the result only")
    parser.add_argument("--deterministic", action="store_true", help="short for --train.deterministic=true")
    known, rest = parser.parse_known_args(arguments)
    try:
        overrides = list(configuration.pair_up(rest)) + ["train.deterministic=true"] * known.deterministic
        if known.resume:
            if known.config or known.preflight:
                raise configuration.ConfigError("--resume goes on with the run's own recipe; give no other.")
            if (known.resume / "metrics.json").exists():
                done = f"{known.resume} is finished; its report is {known.resume}/report.html"
                if overrides:
                    raise configuration.ConfigError(f"{done}. Other settings are another run: leave --resume out.")
                parser.exit(0, f"{done}\n")  # no error, so that what resumes until a run is finished comes to an end
            config, begun = configuration.load(known.resume / "config.toml", overrides), known.resume / "begun.toml"
            if begun.exists():
                configuration.changed(configuration.load(begun), config)  # now, and not after minutes
            return dataclasses.replace(config, data=configuration.absolute(config).data), known.resume, known
        own = any(text.startswith("data.path=") and text != "data.path=digits" for text in overrides)
        recipe = known.config or CONFIGS / ("folder.toml" if own else "digits.toml")
        config = configuration.absolute(configuration.load(recipe, overrides))
    except configuration.ConfigError as error:
        parser.exit(2, f"{error}\n(python scripts/train.py --help lists all settings)\n")
    try:
        require_outside(config.data.path, {"--runs": known.runs, "--data.cache": Path(config.data.cache)})
    except DataError as error:
        parser.exit(2, f"{error}\n")
    with progress.without_messages(known.quiet):
        print(f"recipe {recipe}")
    runs.check_output(Path(config.data.cache), "folder", "--data.cache")
    try:
        return config, runs.new_folder(known.runs, config.backbone.short_name), known
    except OSError as error:
        parser.exit(1, f"No folder can be made in {str(known.runs)!r}: {error.strerror}. Choose another with --runs.\n")


if __name__ == "__main__":
    main()
