"""Tables that have a column for each class, with 0 and 1."""

from collections.abc import Container, Sequence
from pathlib import Path

from ...labels import SEPARATORS
from .names import DataError

YES, NO = {"1", "1.0", "true", "yes", "x"}, {"0", "0.0", "false", "no", ""}
"""What stands in a column of a class, in lower case."""


def gather_labels(
    file: Path, header: Sequence[str], lines: Sequence[tuple[int, list[str]]], known: Container[str]
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header and (line, cells) of a table that has a column for each class, with one column `label` in their place.

    Args:
        file: the table.
        header: its columns.
        lines: its rows.
        known: columns that mean something else.

    Raises:
        DataError: if it has none.
    """
    values = [{cells[at].strip().lower() for _, cells in lines if at < len(cells)} for at in range(len(header))]
    classes = [at for at, name in enumerate(header) if values[at] <= YES | NO and name not in known]
    if not classes:
        raise DataError(
            f"{str(file)!r} needs a column of labels (cat;dog), or with data.labels=multi a column for each class with "
            f"0 and 1. Received: {header}"
        )
    print(f"{str(file)!r}: each of these columns is a class: {', '.join(header[at] for at in classes)}")

    def named(cells: Sequence[str]) -> str:
        return SEPARATORS[0].join(
            header[at] for at in classes if cells[at : at + 1] and cells[at].strip().lower() in YES
        )

    kept = [at for at in range(len(header)) if at not in classes]
    rows = [(line, [*(cells[at] if at < len(cells) else "" for at in kept), named(cells)]) for line, cells in lines]
    return [*(header[at] for at in kept), "label"], rows
