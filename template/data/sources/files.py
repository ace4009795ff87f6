"""The files in folders, without hidden and system files; and those that are given on a command line."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
"""Compared in lower case. Names that begin with a dot are skipped too, and all that match these patterns:"""
_PATTERNS = re.compile(
    r"found\.\d{3}|~\$.*|\$recycle\.bin.*|#recycle.*|@recycle.*|@eadir.*|@syno.*|@gmt-.*|~snapshot|"
    r"(paxheaders?|gnusparsefile)(\.\d+)?|backups\.backupdb|.*\.(lrdata|photoslibrary)|"
    r".*(:zone\.identifier|@synoeastream|@synoresource)|thumbs\.db:.*",
    re.IGNORECASE | re.DOTALL,
)

HIDDEN_FOLDER = "a hidden or system folder; rename it if it holds images"

HIDDEN_FILE = "a hidden file; rename it if it is an image"

LINKED = "a symbolic link to a folder, which is not followed; copy the images, or give the path of that folder"

UNLISTED = "the folder cannot be listed"


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is hidden or made by an operating system, an archive or a tool."""
    return name.startswith(".") or name.lower() in _LEFT_BEHIND or bool(_PATTERNS.fullmatch(name))


def require_outside(images: str, places: Mapping[str, Path]) -> None:
    """See that what a run writes is not among its images, where it would be taken for a class.

    Args:
        images: absolute path of their folder; or anything else.
        places: folders to write into, by the option with which another can be chosen.

    Raises:
        DataError: naming the first of them that is.
    """
    for option, folder in places.items():
        place = Path(os.path.abspath(folder))  # noqa: PTH100
        if place.is_relative_to(images) and not any(map(is_junk, place.relative_to(images).parts)):
            raise DataError(
                f"{str(place)!r} is inside the images and would be taken for a class. Choose another with "
                f"{option}, such as one beside {images!r}."
            )


def subfolders(root: Path) -> list[Path]:
    """Folders in a folder, sorted, without hidden and system folders."""
    return [f for f in listing(root) if f.is_dir()]


def listing(folder: Path) -> list[Path]:
    try:
        return sorted(f for f in folder.iterdir() if not is_junk(f.name))
    except OSError as error:
        raise DataError(f"Folder {str(folder)!r} cannot be listed: {error.strerror}.") from error


def _stop(error: OSError) -> None:
    raise DataError(
        f"Folder {error.filename!r} cannot be listed: {error.strerror}. Change its permissions, or move it elsewhere."
    )


def list_files(root: Path, cannot_list: Callable[[OSError], None] = _stop) -> Iterator[Path]:
    """Files below a folder in sorted order, without hidden and system files.

    Args:
        root: the folder.
        cannot_list: called with the error for a folder below that cannot be listed.

    Raises:
        DataError: if a folder below cannot be listed, unless `cannot_list` is given: its images would be
            missing silently.
    """
    for here, folders, files in os.walk(root, onerror=cannot_list):
        folders[:] = sorted(name for name in folders if not is_junk(name))
        yield from (Path(here, name) for name in sorted(files) if not is_junk(name))


def skipped_files(
    root: Path, followed: Sequence[Path] = (), report: Callable[[str], None] = print
) -> Iterator[tuple[Path, str]]:
    """What `list_files` skips and somebody may miss, with the reason: hidden files, system folders, links to folders.

    System files (.DS_Store, Thumbs.db, ._name.jpg) are only counted.

    Args:
        root: the folder.
        followed: links to folders that are followed.
        report: called with a line on those that are counted, if there are any.
    """
    system: Counter[str] = Counter()
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
                system[_kind(name)] += 1
    if system:
        kinds = ", ".join(legible(name) for name, _ in system.most_common(5))
        report(f"{system.total()} system files are ignored ({kinds})")


def _kind(name: str) -> str:
    """A system file by its name, or by a pattern of those that are made for each file."""
    mark = re.search(r"^\._|:[^:]*$|@[^@]*$", name)
    return name if mark is None else f"{mark[0]}*" if mark.start() == 0 else f"*{mark[0]}"


def collect_files(given: Sequence[Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The given files and those in the given folders; and what was skipped, with the reason.

    A file that is given is taken even if it is hidden or does not exist; a folder that cannot be listed is skipped.
    """
    files: list[Path] = []
    skipped: list[tuple[Path, str]] = []

    def cannot_list(error: OSError) -> None:
        skipped.append((Path(error.filename), f"{UNLISTED}: {error.strerror}"))

    for place in given:
        if os.path.isdir(place):  # noqa: PTH112 (that of Path raises for names that are too long)
            files += list_files(place, cannot_list)
            counted: list[str] = []
            skipped += skipped_files(place, report=counted.append)
            skipped += [(place, line) for line in counted]
        else:
            files.append(place)
    return files, skipped


def describe_skipped(skipped: Sequence[tuple[Path, str]], most: int = 10) -> Iterator[str]:
    """Lines on what `collect_files` skipped: how much, and the first with the reason."""
    if skipped:
        yield f"{len(skipped)} skipped:"
        yield from (f"  {str(path)!r}: {reason}" for path, reason in skipped[:most])
        yield from [f"  and {len(skipped) - most} more"] if len(skipped) > most else []


def describe_notes(notes: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Lines on what had to be assumed to decode images: how many, and the name of the first.

    Args:
        notes: (name, note) of each image; the note is "" where nothing was assumed.
    """
    named: dict[str, list[str]] = {}
    for name, note in notes:
        if note:
            named.setdefault(note, []).append(name)
    for note, names in named.items():
        yield f"{len(names)} images: {note} ({names[0]!r}{' ...' * (len(names) > 1)})"


def failure_reason(given: Sequence[Path], skipped: Sequence[tuple[Path, str]], done: int) -> str | None:
    """Why a program has failed on what it was given, or None if all of it was there.

    Args:
        given: files and folders.
        skipped: from `collect_files`.
        done: how many images were read.
    """
    missing = [str(path) for path in given if not os.path.exists(path)]  # noqa: PTH110
    unlisted = [str(path) for path, reason in skipped if reason.startswith(UNLISTED)]
    problems = [f"not found: {', '.join(map(repr, missing[:5]))}" + " ..." * (len(missing) > 5)] * bool(missing)
    problems += [f"cannot be listed: {', '.join(map(repr, unlisted[:5]))}"] * bool(unlisted)
    problems += ["none of the files could be read as an image"] * (not done)
    return "; ".join(problems) or None
