"""Tables of images: CSV in its many forms. Every guess is printed; what is ambiguous is refused."""

import codecs
import csv
import difflib
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...runs import legible
from .indicators import gather_labels
from .names import DataError, Entry, is_missing, normalize, part_of, tidy
from .paths import locate

ENDINGS = {".csv", ".tsv", ".tab", ".txt"}
"""Of files that are read as tables."""
_PEOPLE = ("patient", "subject", "participant", "person", "individual", "animal", "donor", "specimen")
_SOURCES = ("case", "study", "lesion", "slide", "camera", "video", "sequence", "scene", "session")
MEANINGS = {
    "path": (
        "path", "file", "filename", "filepath", "filenames", "imagepath", "imagefile", "imagefilename", "imagefilepath",
        "imagename", "imgpath", "imgfile", "imgname", "relativepath", "fullpath", "image", "img", "picture", "photo",
        "images", "filepaths", "imagepaths", "fname", "imageindex", "imageid", "imgid", "id", "name",
    ),
    "label": (
        "label", "labels", "class", "classname", "classlabel", "labelname", "category", "categoryname", "target",
        "groundtruth", "classes", "diagnosis", "dx", "species", "breed", "classid", "labelid",
    ),
    "split": (
        "split", "splits", "subset", "partition", "part", "set", "dataset", "datasplit", "datasetsplit", "phase",
        "fold", "usage",
    ),
    "group": (
        "group", "groups", "groupid", *(f"{word}{end}" for word in (*_PEOPLE, *_SOURCES) for end in ("id", "", "no",
        "number", "name")),
    ),
}  # fmt: skip
"""Names of columns in lower case without spaces and signs; the first that a table has is taken."""
_NEAR = {
    "split": re.compile("is(train|val|test)|traintest|trainval"),
    "group": re.compile(r"\w*uid$|mrn$|(user|owner|seq|site|location|station|burst|clip)"),
}
"""What other columns may mean, by the beginning of their names."""
_SURE = {"split", "splits", "subset", "partition"}
"""Columns whose values must be parts; another that could name parts is taken for them only if all its values are."""
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Bytes that a file begins with, and its encoding; in this order, as one of UTF-32 begins like one of UTF-16."""
_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}

Row = tuple[int, dict[str, str]]
"""Line in the file, and its cells by meaning."""


def read_table(file: Path, *, multi: bool = False) -> tuple[list[Entry], list[tuple[str, str]], bool]:
    """Columns of path and label, and perhaps of split and group, by any of their `MEANINGS`.

    Paths are relative to the table's folder. What is not in the plain form is printed: the delimiter,
    the encoding, the columns, paths that are relative to another folder.

    Args:
        file: the table.
        multi: whether an image may have no label or several, in one cell or in a column for each class with 0 and 1.

    Returns:
        The images, in the order of the rows; nothing that was skipped; and whether there is a column of groups.

    Raises:
        DataError: if it cannot be read or a row is not complete, with the line and what to do.
    """
    header, lines = _cells(file, {"path"} if multi else {"path", "label"})
    if multi and "label" not in map(_meaning, header):
        header, lines = gather_labels(file, header, lines, {name for name in header if _meaning(name)})
    columns = _recognised(file, header, lines)
    rows = list(_rows(file, header, columns, lines))
    if not rows:
        raise DataError(f"{str(file)!r} has no rows below its header.")
    _refuse_incomplete(file, rows, multi)
    images = locate(file, [(row["path"], row["label"]) for _, row in rows])
    if nobody := sum(is_missing(row.get("group", "")) for _, row in rows):
        print(f"{str(file)!r}: {nobody} rows have no group (a missing value)")
    found = [
        Entry(legible(row["path"]), image, row["label"], part_of(row.get("split", "")), _group(row.get("group", "")))
        for (_, row), image in zip(rows, images, strict=True)
    ]
    return found, [], "group" in columns


def _group(cell: str) -> str:
    """The group in its normalized spelling, so that a typing variant is no other group; "" for a missing value."""
    return "" if is_missing(cell) else normalize(cell)


def _cells(file: Path, needed: set[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and (line, cells) of each row that is not blank."""
    text, first = _text(file), 1
    delimiter = None
    if told := re.match(r"\s*\"?sep=(.)\"?\s*(?:\r\n|\r|\n|$)", text, re.IGNORECASE):  # for Excel
        delimiter, text, first = told[1], text[told.end() :], 2
    headers = []
    for sign in [delimiter] if delimiter else _DELIMITERS:
        try:
            table = _parsed(text, sign, first)
        except csv.Error as error:
            raise DataError(f"{str(file)!r} cannot be read as CSV: {error}") from error
        headers.append(table[0][1] if table else [])
        if needed <= {_meaning(name) for name in headers[-1]}:
            break
    else:
        raise DataError(
            f"{str(file)!r} needs columns path,label (optional: split,group), named in its first line, with comma, "
            f"semicolon or tab between them. Received: {headers[0]}{_half(max(headers, key=len))}"
        )
    if sign != ",":
        print(f"{str(file)!r}: the delimiter is {_DELIMITERS.get(sign, repr(sign))}")
    header = [tidy(name) for name in headers[-1]]
    lines = [(line, cells) for line, cells in table[1:] if [*map(_squeezed, cells)] != [*map(_squeezed, header)]]
    if again := len(table) - 1 - len(lines):
        print(f"{str(file)!r}: its header is repeated {again} times (concatenated tables?); these rows are skipped")
    return header, lines


def _parsed(text: str, sign: str, first: int) -> list[tuple[int, list[str]]]:
    """(line, cells) of each row that is not blank. A last line is added, which a quotation that is open takes in."""
    reader = csv.reader(io.StringIO(f"{text}\n\0", newline=""), delimiter=sign, skipinitialspace=True)
    table: list[tuple[int, list[str]]] = []
    try:
        table += ((reader.line_num + first - 1, row) for row in reader)
    except csv.Error as error:
        raise csv.Error(f"line {reader.line_num + first - 1}: {error}") from error
    if table.pop()[1] != ["\0"]:
        opened = table[-1][0] + 1 if table else first
        raise csv.Error(f"line {opened} opens a quotation mark that is never closed; remove or double it")
    return [(line, row) for line, row in table if any(cell.strip() for cell in row)]


def _half(header: Sequence[str]) -> str:
    """Which of the two columns that are needed is there, if one is."""
    known = {_meaning(name): name for name in header}
    words = {"path": "paths", "label": "labels"}
    there = next(((words[meaning], known[meaning]) for meaning in words if meaning in known), None)
    if there is None:
        return ""
    (lacking,) = {*words.values()} - {there[0]}
    return f". It has a column of {there[0]}, {there[1]!r}, but none of {lacking}: rename the one that is"


def _text(file: Path) -> str:
    """The text of a table, in UTF-8 or the encoding of its byte order mark."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{str(file)!r} cannot be read: {error.strerror}") from error
    if data.startswith(b"PK\3\4"):
        raise DataError(f"{str(file)!r} is a spreadsheet or an archive, not text. Save it as CSV in UTF-8.")
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    for parity, name in ((1, "utf-16-le"), (0, "utf-16-be")):  # without a mark: of ASCII each second byte is zero
        if encoding is None and len(data) > 1 and data[parity:200:2].count(0) > len(data[:200]) / 4:
            encoding = name
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{str(file)!r} cannot be read as CSV in UTF-8: line {line} has the byte {data[error.start]:#x}. It may be "
            "in another encoding (Latin-1, Windows-1252). Save it as `CSV UTF-8`, which Excel offers, or "
            "convert it: iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"{str(file)!r} line {line} has a NUL character: no text, or a damaged table. Save it again.")
    if encoding not in {None, "utf-8-sig"}:
        print(f"{str(file)!r}: read as {encoding.upper()}")
    return text


def _squeezed(name: str) -> str:
    """A column's name without case, spaces, signs and what cannot be seen."""
    return re.sub(r"[\W_]+", "", normalize(name).lower())


def _meaning(name: str) -> str | None:
    return next((meaning for meaning, names in MEANINGS.items() if _squeezed(name) in names), None)


def _recognised(file: Path, header: Sequence[str], lines: Sequence[tuple[int, list[str]]]) -> dict[str, int]:
    """Position of each column that is used, by its meaning; prints what is recognised and what is not used."""
    columns: dict[str, int] = {}
    for meaning, names in MEANINGS.items():
        candidates = sorted(
            (position for position, name in enumerate(header) if _squeezed(name) in names),
            key=lambda position: (header[position] != meaning, names.index(_squeezed(header[position])), position),
        )
        if meaning == "split":
            candidates = [position for position in candidates if _names_parts(header[position], position, lines)]
            others = {*range(len(header))} - {*columns.values()}
            candidates = candidates or [at for at in sorted(others) if {"train"} < _parts_named(at, lines)]
        if len(candidates) > 1 and header[candidates[0]] == header[candidates[1]]:
            raise DataError(f"{str(file)!r} has two columns {header[candidates[0]]!r}. Rename or remove one.")
        if candidates:
            columns[meaning] = candidates[0]
    for meaning, position in columns.items():
        if header[position] != meaning:
            print(f"{str(file)!r}: column {header[position]!r} is taken as {meaning}")
    unused = [
        _unused(name, columns) for position, name in enumerate(header) if name and position not in columns.values()
    ]
    if unused:
        print(f"{str(file)!r}: unused columns: {', '.join(unused)}")
    return columns


def _names_parts(name: str, position: int, lines: Sequence[tuple[int, list[str]]]) -> bool:
    """Whether a column that could name parts does."""
    return _squeezed(name) in _SURE or bool(_parts_named(position, lines))


def _parts_named(position: int, lines: Sequence[tuple[int, list[str]]]) -> set[str]:
    """The parts that the values of a column mean; none if one of them means none."""
    parts = {part_of(value) for _, row in lines if position < len(row) and (value := tidy(row[position]))}
    return set() if "" in parts else parts


def _unused(name: str, columns: dict[str, int]) -> str:
    """A column's name, and what it may have meant."""
    meaning = _meaning(name)
    if meaning == "split" and "split" not in columns:
        return f"{name!r} (its values are not train, val or test)"
    if meaning:
        return f"{name!r} (another is taken as {meaning}; call this one {meaning!r} if it is the better)"
    left = {other: kind for kind, names in MEANINGS.items() if kind not in columns for other in names}
    near = [kind for kind, like in _NEAR.items() if kind not in columns and like.match(_squeezed(name))]
    near += [left[other] for other in difflib.get_close_matches(_squeezed(name), left, n=1, cutoff=0.8)]
    return f"{name!r} (did you mean {near[0]}?)" if near else repr(name)


def _rows(
    file: Path, header: Sequence[str], columns: dict[str, int], lines: Sequence[tuple[int, list[str]]]
) -> Iterator[Row]:
    """Cells by meaning, without what cannot be seen at their ends."""
    for line, cells in lines:
        if len(cells) > len(header) and any(cell.strip() for cell in cells[len(header) :]):
            raise DataError(
                f"{str(file)!r} line {line} has more fields than the header ({[*header]}). "
                f'Write a text with a comma as "a, b". Received: {cells}'
            )
        yield (
            line,
            {
                meaning: _path(cells[at])
                if meaning == "path"
                else cells[at].strip()
                if meaning == "label"
                else tidy(cells[at])
                for meaning, at in columns.items()
                if at < len(cells)
            },
        )


def _path(cell: str) -> str:
    """A path as it is spelled, without spaces and invisible characters around it."""
    return re.sub("^[\\s\u200b\u200e\u200f\ufeff]+|[\\s\u200b\u200e\u200f\ufeff]+$", "", cell)


def _refuse_incomplete(file: Path, rows: Sequence[Row], multi: bool) -> None:
    """Every row has a path and a label that is one (of several labels, there may be none), and a part or none."""

    def incomplete(row: dict[str, str]) -> bool:
        return not row.get("path") or not (multi or tidy(row.get("label", "")))

    for line, row in rows:
        if incomplete(row):
            more = sum(incomplete(other) for _, other in rows) - 1
            raise DataError(
                f"{str(file)!r} line {line}: path and label must both be given"
                + (f" (so in {more} other lines)" if more else "")
                + f". Fill the line or remove it. Received: {row}"
            )
        if row.get("split") and not part_of(row["split"]):
            raise DataError(f"{str(file)!r} line {line}: split must be train, val or test. Received: {row['split']!r}")
    missing = [(line, row["label"]) for line, row in rows if is_missing(row["label"])]
    if missing:
        raise DataError(
            f"{str(file)!r} line {missing[0][0]}: the label {missing[0][1]!r} stands for a missing value "
            f"({len(missing)} rows). Fill or remove these rows; if it is a class, rename it."
        )
    nothing = Counter(row["label"] for _, row in rows if row["label"] in {"None", "none", "NONE"})
    for label, count in nothing.items():
        print(
            f"{str(file)!r}: {count} rows have the label {label!r}. It is taken as a class; or is it a missing value?"
        )
