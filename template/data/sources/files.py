"""The files in folders, without what systems leave behind; and those that are named on a command line."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ...runs import legible
from .names import DataError

_LEFT_BEHIND = {
    # Windows, macOS and Linux
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "$recycle.bin", "recycler", "recycled",
    "system volume information", "config.msi", "msocache", "$winreagent", "$sysreset", "$getcurrent", "lost+found",
    "lost.dir", "temporary items", "network trash folder", "thevolumesettingsfolder", "hiberfil.sys", "pagefile.sys",
    "swapfile.sys", "$extend", "$rmmetadata", "onedrivetemp", "windowsimagebackup",
    # archives, network storage, viewers
    "__macosx", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp", "@sharebin", "@thumb",
    "@__thumb", "@appstore", "@database", "@docker", "@upload_cache", "_gsdata_", "picasa.ini", "zbthumbnail.info",
    "sthumbs.dat", "pspbrwse.jbf",
    # programmers' tools
    "__pycache__", "node_modules", "_svn",
}  # fmt: skip
"""Compared in lower case. Names that begin with a dot are left out too, and all of these patterns:"""
_PATTERNS = re.compile(
    r"found\.\d{3}|~\$.*|\$recycle\.bin.*|#recycle.*|@recycle.*|@eadir.*|@syno.*|@gmt-.*|~snapshot|"
    r"(paxheaders?|gnusparsefile)(\.\d+)?|backups\.backupdb|.*\.(lrdata|photoslibrary)|"
    r".*(:zone\.identifier|@synoeastream|@synoresource)|thumbs\.db:.*",
    re.IGNORECASE | re.DOTALL,
)

HIDDEN_FOLDER = "a hidden folder, or litter of a system or program; rename it if it holds images"

HIDDEN_FILE = "a hidden file; rename it if it is wanted"

LINKED = "a link to a folder is not followed; copy the images, or give the folder itself"

UNLISTED = "the folder cannot be listed"


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is hidden or left behind by a system, and no image of a person."""
    return name.startswith(".") or name.lower() in _LEFT_BEHIND or bool(_PATTERNS.fullmatch(name))


def subfolders(root: Path) -> list[Path]:
    """Folders in a folder, sorted, without hidden ones and what systems leave behind."""
    return [f for f in listing(root) if f.is_dir()]


def listing(folder: Path) -> list[Path]:
    try:
        return sorted(f for f in folder.iterdir() if not is_junk(f.name))
    except OSError as error:
        raise DataError(f"Folder {str(folder)!r} cannot be listed: {error.strerror}.") from error


def _stop(error: OSError) -> None:
    raise DataError(
        f"Folder {error.filename!r} cannot be listed: {error.strerror}. Mend its rights, or move it elsewhere."
    )


def list_files(root: Path, cannot_list: Callable[[OSError], None] = _stop) -> Iterator[Path]:
    """Files below a folder in sorted order, without hidden ones and what systems leave behind.

    Args:
        root: the folder.
        cannot_list: called with the error for a folder below that cannot be listed.

    Raises:
        DataError: if a folder below cannot be listed, unless `cannot_list` is given: its images would be missing
            without a word.
    """
    for here, folders, files in os.walk(root, onerror=cannot_list):
        folders[:] = sorted(name for name in folders if not is_junk(name))
        yield from (Path(here, name) for name in sorted(files) if not is_junk(name))


def passed_over(
    root: Path, followed: Sequence[Path] = (), say: Callable[[str], None] = print
) -> Iterator[tuple[Path, str]]:
    """What `list_files` leaves out and a person may miss, with the reason: hidden files, litter, links to folders.

    Not named are the small files that systems leave everywhere (.DS_Store, Thumbs.db, ._name.jpg); these are counted.

    Args:
        root: the folder.
        followed: links to folders that are looked into all the same.
        say: called with a line on those that are counted, if there are any.
    """
    small: Counter[str] = Counter()
    for here, folders, files in os.walk(root):
        for name in sorted(folders):
            if is_junk(name):
                yield Path(here, name), HIDDEN_FOLDER
            elif Path(here, name).is_symlink() and Path(here, name) not in followed:
                yield Path(here, name), LINKED
        folders[:] = [name for name in folders if not is_junk(name)]
        for name in sorted(filter(is_junk, files)):
            if name.startswith(".") and Path(name).suffix and not name.startswith("._"):
                yield Path(here, name), HIDDEN_FILE
            else:
                small[_kind(name)] += 1
    if small:
        kinds = ", ".join(legible(name) for name, _ in small.most_common(5))
        say(f"{small.total()} small files that systems leave behind are ignored ({kinds})")


def _kind(name: str) -> str:
    """What stands for a small file in a list of those that are ignored."""
    mark = re.search(r"^\._|:[^:]*$|@[^@]*$", name)
    return name if mark is None else f"{mark[0]}*" if mark.start() == 0 else f"*{mark[0]}"


def gather(given: Sequence[Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The files that a person names, those in named folders among them; and what was left out, with the reason.

    A file that is named is taken as it is, even if it is hidden or not there; a folder that cannot be listed is left
    out and does not stop the others.
    """
    files: list[Path] = []
    left: list[tuple[Path, str]] = []

    def cannot_list(error: OSError) -> None:
        left.append((Path(error.filename), f"{UNLISTED}: {error.strerror}"))

    for place in given:
        if os.path.isdir(place):  # noqa: PTH112 (that of Path raises for names that are too long)
            files += list_files(place, cannot_list)
            counted: list[str] = []
            left += passed_over(place, say=counted.append)
            left += [(place, line) for line in counted]
        else:
            files.append(place)
    return files, left


def describe_skipped(left: Sequence[tuple[Path, str]], most: int = 10) -> Iterator[str]:
    """Lines on what `gather` left out: how much, and the first with the reason."""
    if left:
        yield f"{len(left)} left out:"
        yield from (f"  {str(path)!r}: {reason}" for path, reason in left[:most])
        yield from [f"  and {len(left) - most} more"] if len(left) > most else []


def describe_notes(notes: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Lines on what had to be assumed to see something in images: how many, and the name of the first.

    Args:
        notes: (name, note) of each image; "" where nothing was assumed.
    """
    named: dict[str, list[str]] = {}
    for name, note in notes:
        if note:
            named.setdefault(note, []).append(name)
    for note, names in named.items():
        yield f"{len(names)} images: {note} ({names[0]!r}{' ...' * (len(names) > 1)})"


def nothing_done(given: Sequence[Path], left: Sequence[tuple[Path, str]], done: int) -> str | None:
    """Why a program that took what a person named has failed, or None if all that was named was there.

    Args:
        given: what was named.
        left: from `gather`.
        done: how many images were read.
    """
    missing = [str(path) for path in given if not os.path.exists(path)]  # noqa: PTH110
    unlisted = [str(path) for path, reason in left if reason.startswith(UNLISTED)]
    problems = [f"not there: {', '.join(map(repr, missing[:5]))}" + " ..." * (len(missing) > 5)] * bool(missing)
    problems += [f"cannot be listed: {', '.join(map(repr, unlisted[:5]))}"] * bool(unlisted)
    problems += ["none of the files could be read as an image"] * (not done)
    return "; ".join(problems) or None
