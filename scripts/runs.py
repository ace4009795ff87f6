"""The runs in a folder side by side: how good, how long, how large, and in which settings they differ.

    python scripts/runs.py                                       # those in runs/, the newest first
    python scripts/runs.py FOLDER_OR_RUN ... --sort accuracy --filter data=photos --filter backbone.name='mobile*'
    python scripts/runs.py --html runs.html                      # curves laid over each other, and what separates them
    python scripts/runs.py --json
    python scripts/runs.py --prune                               # what finished runs no longer need; asks first

Keys are the columns ({columns}) and all settings of train.py.
Unfinished and damaged runs are listed as such. `--prune` never deletes a model, report or prediction. No TensorFlow.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from template import disk, runs
from template.config import ConfigError
from template.experiments import table
from template.experiments.prune import freeable, remove
from template.experiments.read import Run, find


@runs.script()
def main() -> None:
    """Find, sort and filter; then print, write or prune."""
    parser = argparse.ArgumentParser(
        description=__doc__.format(columns=", ".join(table.COLUMNS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("runs")], metavar="FOLDER",
                        help="of runs, or a run (default: runs)")  # fmt: skip
    parser.add_argument("--sort", default="date", metavar="KEY", help="a column or setting (default: date)")
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument("--filter", action="append", default=[], metavar="KEY=VALUE", help="only these; * ? [] match")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page")
    parser.add_argument("--prune", action="store_true", help="say what can be freed, and ask")
    parser.add_argument("--yes", action="store_true", help="of --prune: do not ask")
    arguments = parser.parse_args()
    if arguments.html:
        runs.check_output(arguments.html, "file", "--html")
    try:
        kept = table.keep(find(arguments.folders), arguments.filter)
        found = table.ordered(kept, arguments.sort, reverse=arguments.reverse)
    except ConfigError as error:
        parser.exit(2, f"{error}\n")
    except OSError as error:
        sys.exit(f"{error.filename!r} cannot be read: {error.strerror}. Expected a folder of runs, or a run.")
    places = ", ".join(map(str, arguments.folders))
    if arguments.json:
        print(json.dumps(table.as_json(found), indent=2))
    elif not found:
        sys.exit(f"no runs in {places}{' pass the filters' if arguments.filter else ''}")
    else:
        print("\n".join(table.lines(found)))
    if arguments.html:
        from template.experiments import page

        runs.write_text(arguments.html, page.html(found, runs.legible(places)))
        print(f"\nwritten: {arguments.html}", file=sys.stderr)
    if arguments.prune:
        _prune(found, sure=arguments.yes)


def _prune(found: Sequence[Run], *, sure: bool) -> None:
    """Say what would be freed, and free it if the answer is yes."""
    what = freeable(found)
    if not what:
        print("\nnothing to free: no checkpoints of finished runs, no cached activations")
        return
    total = sum(each.bytes for each in what)
    print("\nNo longer needed, and made again where it would be:")
    for each in what:
        print(f"  {disk.format_bytes(each.bytes):>10}  {runs.legible(each.title)}")
    try:
        agreed = sure or input(f"Delete these {disk.format_bytes(total)}? [y/N] ").strip().lower() in {"y", "yes"}
    except EOFError:
        sys.exit("\nnothing was deleted: nobody answered (--yes for scripts)")
    if not agreed:
        print("nothing was deleted")
        return
    freed = 0
    for each in what:
        try:
            freed += remove(each)
        except disk.DiskError as error:
            print(f"left alone: {error}")
    print(f"freed {disk.format_bytes(freed)}")


if __name__ == "__main__":
    main()
