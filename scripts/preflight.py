"""Check data, labels, network and machine before a long run: a minute or two in which most mistakes show.

    python scripts/preflight.py --data.path=FOLDER [--config RECIPE] [--backbone.name=...]

Takes the settings of train.py and changes nothing of a run. Writes preflight.png (what enters the network, drawn from
the very tensors), memorised.png (a few images, their labels and their predictions) and preflight.json. Exit
code: 0 if every check passed, 1 if one did not, 2 if settings or images cannot be used.
"""

import argparse
import sys
from pathlib import Path

from template import config as configuration
from template import runs


@runs.script()
def main() -> None:
    """Read the settings as train.py does, and check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("preflight"), help="folder to write to (default: preflight)")
    config, known = configuration.parse(parser)
    runs.check_output(known.out, "folder")
    runs.import_tensorflow()
    from template import recipe
    from template.diagnose.preflight import preflight

    try:
        sys.exit(int(not preflight(config, known.out)))
    except recipe.ERRORS as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
