"""Where the images of a table are: where its paths say, or where all of them are when read in another way."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from .files import list_files
from .names import DataError, normalize

Row = tuple[str, str]
"""Path, as the table spells it, and label."""


def locate(file: Path, rows: Sequence[Row]) -> list[Path]:
    """The file of each row of a table, in their order.

    A path is relative to the folder of the table. One that leads nowhere is read with `/` for a backslash and in the
    other forms of Unicode. If none leads anywhere, all are read in one other way: a folder less or more, in another
    case, with an ending. What is read in another way is printed; of several ways that could be meant, none is taken.

    Raises:
        DataError: if none of the images is there, with the place where the first was looked for.
    """
    plain = [_place(file.parent, path) for path, _ in rows]
    spelled = [_spelled(file.parent, path, there) for there, (path, _) in zip(plain, rows, strict=True)]
    if changed := sum(one != other for one, other in zip(plain, spelled, strict=True)):
        print(f"{str(file)!r}: {changed} paths are read with / for \\ or in another form of Unicode")
    if any(map(_there, spelled)):
        return spelled
    relative = [(re.sub(r"^(?:[A-Za-z]:)?/+", "", path.replace("\\", "/")), label) for path, label in rows]
    leading: dict[tuple[str, ...], tuple[str, list[Path]]] = {}
    for words, way in _ways(file.absolute().parent, relative):
        if _there(way(*relative[0])) and all(map(_there, found := [way(*row) for row in relative])):
            leading.setdefault(tuple(map(os.path.realpath, found)), (words, found))
    if len(leading) == 1:
        ((words, found),) = leading.values()
        print(f"{str(file)!r}: its paths are not relative to its folder; all images are found {words}")
        return found
    raise DataError(
        f"{str(file)!r}: none of its {len(rows)} images was found. Expected the first at {str(spelled[0])!r}: "
        "paths are relative to the folder of the table. Move the table, or correct the paths."
        + (f" All are found {' and '.join(words for words, _ in leading.values())}: which is meant?" if leading else "")
        + ("" if leading else _elsewhere(file.parent, relative[0][0]))
    )


def _ways(here: Path, rows: Sequence[Row]) -> Iterator[tuple[str, Callable[[str, str], Path]]]:
    """Other ways to read (path, label), in words and as a function."""
    depth, labels = min(path.count("/") for path, _ in rows), {normalize(label) for _, label in rows}
    inside = sorted(f for f in here.iterdir() if f.is_dir() and normalize(f.name) not in labels)
    for folder in (here, *inside):
        for count in range(depth + 1):
            fewer = f"without the first {count} folder{'s' * (count > 1)} of each path"
            words = [f"in {folder.name}/"] * (folder != here) + [fewer] * (count > 0)
            yield ", ".join(words) or "without the / or drive", _without_first(folder, count)
    yield "in folders of their labels", lambda path, label: here / label / path
    yield "from the folder above", lambda path, _: here.parent / path
    yield "from the working directory", lambda path, _: Path.cwd() / path
    files = [file.relative_to(here) for file in list_files(here, cannot_list=lambda error: None)]
    for how, names in (
        ("in another case", _once((normalize(name.as_posix()), name) for name in files)),
        ("with an extension", _once((normalize(name.with_suffix("").as_posix()), name) for name in files)),
    ):
        yield how, _among(here, names)


def _without_first(folder: Path, count: int) -> Callable[[str, str], Path]:
    return lambda path, _: folder / path.split("/", count)[count]


def _among(folder: Path, names: Mapping[str, Path]) -> Callable[[str, str], Path]:
    return lambda path, _: folder / names.get(normalize(path), path)


def _once(pairs: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Of pairs, those with a key that no other has."""
    pairs = [*pairs]
    counts = Counter(key for key, _ in pairs)
    return {key: value for key, value in pairs if counts[key] == 1}


def _spelled(parent: Path, path: str, plain: Path) -> Path:
    """The file that is there under another spelling of its path; the plain one if there is none."""
    turned = path.replace("\\", "/")
    if _there(plain) or turned.isascii() and turned == path:
        return plain
    ways = (_place(parent, unicodedata.normalize(form, turned)) for form in ("NFC", "NFD"))
    return next(filter(_there, ways), _place(parent, turned))


def _elsewhere(root: Path, path: str) -> str:
    """Where a file of this name is, if it is anywhere below."""
    name = path.rsplit("/", 1)[-1]
    found = next((Path(here, name) for here, _, files in os.walk(root) if name in files), None)
    return f" A file of its name is at {str(found.relative_to(root))!r}." if found else ""


def _place(parent: Path, path: str) -> Path:
    """The file of a path, whatever encoding the system's file names have."""
    return parent / os.fsdecode(path.encode("utf-8"))


def _there(file: Path) -> bool:
    # That of Path raises for a name that is too long, or may not be seen.
    return os.path.exists(file)  # noqa: PTH110
