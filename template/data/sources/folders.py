"""Folders of images: a walk that leaves out what systems leave behind, and what the folders say of their images."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ...runs import legible
from .names import DataError, Found, is_missing, look, part_of, part_within

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

_OF_DETECTION = {"images", "imgs", "jpegimages", "labels", "annotations", "masks", "bboxes", "xml", "xmls", "gt"}
_OF_DETECTION |= {"imagesets", "segmentationclass", "segmentationobject", "image", "img", "mask", "label", "annotation"}

HIDDEN_FOLDER = "a hidden folder, or litter of a system or program; rename it if it holds images"
HIDDEN_FILE = "a hidden file; rename it if it is wanted"
LINKED = "a link to a folder is not followed; copy the images, or give the folder itself"
UNLISTED = "the folder cannot be listed"


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is hidden or left behind by a system, and no image of a person."""
    return name.startswith(".") or name.lower() in _LEFT_BEHIND or bool(_PATTERNS.fullmatch(name))


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


def read_folder(root: Path) -> tuple[list[Found], list[tuple[str, str]]]:
    """One sub-folder a class, or folders of train, val and test with such; either may be the outer one.

    Returns:
        What was found, in sorted order of the folders; and (name, reason) of what was left out.

    Raises:
        DataError: if the folders are of another shape, naming them and what to do.
    """
    tops = _parts(root)
    places = _places(root, tops)
    folders = [folder for _, _, folder in places]
    for folder in folders:
        if folder.is_symlink() and root.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{str(folder)!r} is a link to a folder that contains it: a loop. Remove the link.")
    loose = sorted(
        f for top in {root, *tops.values(), *(f.parent for f in folders)} for f in _listing(top) if f.is_file()
    )
    names = list(dict.fromkeys(name for _, name, _ in places))
    if not names:
        raise DataError(f"{str(root)!r} has no class folders" + _instead(root, loose))
    looks = {look(name) for name in names}
    if len(looks) > 1 and looks & {"images", "imgs", "jpegimages", "image", "img"} and looks <= _OF_DETECTION:
        raise DataError(
            f"{str(root)!r}: {names} are no classes, but images and what is drawn on them, as for detection or "
            "segmentation. Expected is a folder of images for each class, or a CSV file with path,label."
        )
    if len(places) == 1 and len(subfolders(inner := _innermost(folders[0]))) > 1:
        raise DataError(
            f"{str(root)!r} has one folder, {names[0]!r}, with folders in it. If those are the classes or parts, use "
            f"--data.path={str(inner)!r}"
        )
    found = [
        Found(legible(file.relative_to(root).as_posix()), file, name, part)
        for part, name, folder in places
        for file in list_files(folder)
    ]
    filled = {look(one.label) for one in found}
    if empty := sorted(name for name in names if look(name) not in filled):
        raise DataError(f"Class folders without any file: {empty}. Fill or remove them.")
    if doubtful := sorted(name for name in names if is_missing(name)):
        print(f"{doubtful}: classes with the name that programs give to a missing value. Were their labels lost?")
    left = [*((file, "outside the class folders") for file in loose), *passed_over(root, folders)]
    return found, [(legible(file.relative_to(root).as_posix()), reason) for file, reason in left]


def _innermost(folder: Path) -> Path:
    """Past folders that hold nothing but one folder each."""
    while len(below := subfolders(folder)) == 1:
        folder = below[0]
    return folder


def _places(root: Path, tops: dict[str, Path]) -> list[tuple[str, str, Path]]:
    """(part, class, folder) of every class folder."""
    if list(tops) != [""]:
        return [(part, legible(folder.name), folder) for part, top in tops.items() for folder in subfolders(top)]
    classes = subfolders(root)
    _refuse_one_level_up(root, classes)
    inner = {folder: subfolders(folder) for folder in classes}
    divided = [folder for folder, below in inner.items() if below and all(part_of(f.name) for f in below)]
    if len(divided) > 1 and divided == classes and any(part_of(f.name) == "train" for f in inner[classes[0]]):
        print(f"{str(root)!r}: each class folder has folders of parts, {sorted({f.name for f in inner[classes[0]]})}")
        return [(part_of(f.name), legible(folder.name), f) for folder in classes for f in inner[folder]]
    return [("", legible(folder.name), folder) for folder in classes]


def _parts(root: Path) -> dict[str, Path]:
    """Folders of train, val and test, or the root itself as the part that nobody named."""
    folders = subfolders(root)
    named = {folder: part_of(folder.name) for folder in folders}
    within = {folder: part_within(folder.name) for folder in folders}
    told = [part for part in within.values() if part]
    if not all(named.values()) and "train" in told and 1 < len(told) == len({*told}) and any(map(subfolders, folders)):
        named = within  # seg_train/ and seg_test/; with seg_pred/ beside them, that is refused
    parts = [part for part in named.values() if part]
    strangers = [folder.name for folder, part in named.items() if not part]
    if strangers and parts:
        return _parts_beside(root, named, strangers)
    if not parts:
        return {"": root}
    if len({*parts}) < len(parts):
        raise DataError(
            f"{str(root)!r} names a part twice: {[f.name for f in folders]}. Put the images of one part into one "
            "folder; if these are classes, give them other names."
        )
    if "train" not in parts:
        raise DataError(
            f"{str(root)!r} has {[f.name for f in folders]} but no train/ folder. To train, add one with the same "
            "class folders; to score one of them, give its own path; if these are classes, give them other names."
        )
    if any(folder.name.lower() != part for folder, part in named.items()):
        print(f"{str(root)!r}: parts are " + ", ".join(f"{folder.name}/ ({part})" for folder, part in named.items()))
    return {part: _same_inside(folder, part) for folder, part in named.items()}


def _same_inside(folder: Path, part: str) -> Path:
    """Past folders that an archive put into one of the same name: seg_train/seg_train/."""
    below = subfolders(folder)
    while len(below) == 1 and part in {part_of(below[0].name), part_within(below[0].name)} and subfolders(below[0]):
        folder = below[0]
        below = subfolders(folder)
    return folder


def _parts_beside(root: Path, named: dict[Path, str], strangers: list[str]) -> dict[str, Path]:
    """Folders called as parts beside others: classes, if it is only a `train` with images; otherwise refused."""
    parts = {folder.name for folder, part in named.items() if part}
    trains = [folder for folder, part in named.items() if part == "train"]
    if len(parts) == len(trains) == 1 and not subfolders(trains[0]):
        print(f"{str(root)!r}: {trains[0].name!r} is taken for a class: it holds images, and stands beside {strangers}")
        return {"": root}
    if trains:
        raise DataError(
            f"{str(root)!r} has {trains[0].name}/ beside {strangers}: expected only train/, val/ and test/. Move what "
            f"is no part out of it, or into the parts as a class; if {trains[0].name!r} is a class, rename it."
        )
    raise DataError(
        f"{str(root)!r} has {sorted(parts)} beside {strangers}. If those are parts, put the class folders {strangers} "
        f"into a train/ folder beside them, or move {sorted(parts)} elsewhere; if they are classes, rename them."
    )


def _refuse_one_level_up(root: Path, folders: Sequence[Path]) -> None:
    """A folder that holds train/ with folders in it is no class."""
    for folder in folders:
        inside = [f for f in subfolders(folder) if "train" in {part_of(f.name), part_within(f.name)}]
        if any(subfolders(f) for f in inside):
            raise DataError(
                f"{str(root)!r} is a level too high: its folder {folder.name!r} holds {inside[0].name}/ with folders. "
                f"Use --data.path={str(folder)!r}"
            )


def _instead(root: Path, loose: Sequence[Path]) -> str:
    """What a folder without class folders has."""
    tables = [file.name for file in loose if file.suffix.lower() in {".csv", ".tsv"}]
    if tables:
        return f", but a table: use --data.path={str(root / tables[0])!r}"
    if loose:
        return f", only {len(loose)} files. Put the images of each class into a folder of its own."
    return ". Put the images of each class into a folder of its own, below it."


def subfolders(root: Path) -> list[Path]:
    """Folders in a folder, sorted, without hidden ones and what systems leave behind."""
    return [f for f in _listing(root) if f.is_dir()]


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(f for f in folder.iterdir() if not is_junk(f.name))
    except OSError as error:
        raise DataError(f"Folder {str(folder)!r} cannot be listed: {error.strerror}.") from error
