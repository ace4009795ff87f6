"""Search for a better recipe by its out-of-fold loss (Optuna): pip install -c constraints.txt -e ".[tune]"

    python scripts/tune.py --data.path=FOLDER --seconds 1200        # the space of configs/tune.toml
    python scripts/tune.py --data.path=FOLDER --config mine.toml    # your own [tune.space]
    python scripts/tune.py --resume runs/20260101-120000-tune-mobilenet    # go on, or help while another searches

Takes the settings of train.py; the space may name any that do not say what is measured. The test part is never looked
at. Any number of processes work on a study: on this machine, by --resume; on others, by the same command everywhere
with --storage, the address of a database or a journal file on a shared disk. Exit code: 0, 1 if it could not end, 2 if
settings cannot be used, 130 or 143 if it was stopped.
"""

import argparse
import functools
import hashlib
import importlib.util
import sys
from pathlib import Path

from template import config as configuration
from template import progress, runs, system
from template.data.sources.files import require_outside
from template.data.sources.names import DataError
from template.search.space import read_space

CONFIGS = Path(__file__).parent.parent / "configs"


@runs.script()
def main() -> None:
    """Check recipe and space, which takes no TensorFlow; then search, and say what came of it."""
    config, space, folder, known = parse()
    resume = f"python scripts/tune.py --resume {system.quote(str(folder))}"
    with runs.graceful_stop(f"Stopped. All trials that ended are kept. Go on with: {resume}"):
        with progress.without_messages(known.quiet):
            runs.import_tensorflow()
        from template import recipe
        from template.search import outcome, tune
        from template.train.distribute import on_devices

        try:
            study = tune.open_study(known.storage or str(folder / "journal.log"), known.name)
            with on_devices(config.train):
                with progress.without_messages(known.quiet):
                    found = tune.open_search(config, space, study, (known.folds, known.repeats), folder)
                    print(f"to search with another process at the same time: {resume}", flush=True)
                    tune.search(found, known.seconds, known.trials)
                result = outcome.conclude(found)
        except recipe.ERRORS as error:
            sys.exit(f"\n{error}\n(what the study has found is kept; to go on: {resume})")
    if result:
        print(f"table and plots: {folder}\ntrain it, and look at the test part once: python scripts/train.py --config "
              f"{system.quote(str(folder / 'best.toml'))}")  # fmt: skip


def parse() -> tuple[configuration.Config, dict, Path, argparse.Namespace]:
    """Command line to configuration, space and folder; leaves with a message if a setting is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIGS / "tune.toml", help="recipe with [tune.space]")
    parser.add_argument("--seconds", type=float, default=1200, help="begin no trial after so many (default: 1200)")
    parser.add_argument("--trials", type=int, help="nor when the study has so many, of all its processes")
    parser.add_argument("--folds", type=int, default=3, help="in how many the images are divided (default: 3)")
    parser.add_argument("--repeats", type=int, default=1, help="how often (default: 1)")
    parser.add_argument("--storage", help="address of a database, or a journal file (default: in its folder)")
    parser.add_argument("--quiet", action="store_true", help="print warnings and the result only")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where its folder goes (default: runs)")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with a study, or help another process")
    known, settings = parser.parse_known_args()
    if importlib.util.find_spec("optuna") is None:
        parser.exit(2, 'scripts/tune.py needs Optuna: pip install -c constraints.txt -e ".[tune]"\n')
    if known.folds < 2 or known.repeats < 1:
        parser.error(f"Expected --folds from 2 and --repeats from 1 on. Received: {known.folds}, {known.repeats}")
    try:
        return _resumed(known, settings) if known.resume else _new(known, settings)
    except (configuration.ConfigError, DataError) as error:
        parser.exit(2, f"{error}\n")
    except OSError as error:
        parser.exit(2, f"{str(error.filename)!r} cannot be used: {error.strerror}.\n")


def _new(
    known: argparse.Namespace, settings: list[str]
) -> tuple[configuration.Config, dict, Path, argparse.Namespace]:  # fmt: skip
    """A new folder, with all that `_resumed` needs."""
    overrides = list(configuration.pair_up(settings))
    config = configuration.absolute(configuration.load(known.config, overrides))
    configuration.require_single_label(config, "tune.py")
    space = read_space(known.config, lambda more: configuration.load(known.config, [*overrides, *more]))
    require_outside(config.data.path, {"--runs": known.runs, "--data.cache": Path(config.data.cache)})
    runs.check_output(Path(config.data.cache), "folder", "--data.cache")
    if known.storage and "://" not in known.storage:
        known.storage = str(Path(known.storage).expanduser().absolute())
        runs.check_output(Path(known.storage), "file", "--storage")
    told = [configuration.flat(config) | {"data.path": "", "data.cache": ""}, sorted(map(repr, space.items()))]
    told += [known.folds, known.repeats]
    known.name = f"tune-{hashlib.sha256(repr(told).encode()).hexdigest()[:12]}"
    folder = runs.new_folder(known.runs, f"tune-{config.backbone.short_name}")
    runs.write_text(folder / "space.toml", known.config.read_text(encoding="utf-8"))
    runs.write_text(folder / "config.toml", configuration.to_toml(config))
    how = {key: getattr(known, key) for key in ("name", "folds", "repeats", "storage")}
    runs.write_json(folder / "study.json", how)
    return config, space, folder, known


def _resumed(
    known: argparse.Namespace, settings: list[str]
) -> tuple[configuration.Config, dict, Path, argparse.Namespace]:  # fmt: skip
    """What a folder says; --seconds and --trials are those of the command line."""
    if settings:
        raise configuration.ConfigError(f"--resume goes on with the study's own recipe; received {settings}.")
    vars(known).update(runs.read_json(known.resume / "study.json"))
    load = functools.partial(configuration.load, known.resume / "config.toml")
    return load(), read_space(known.resume / "space.toml", load), known.resume, known


if __name__ == "__main__":
    main()
