"""Images in folders: one folder per class, or train, val and test with such."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ...runs import legible
from .files import list_files, listing, skipped_files, subfolders
from .names import DataError, Entry, is_missing, normalize, part_of, part_within

_OF_DETECTION = {"images", "imgs", "jpegimages", "labels", "annotations", "masks", "bboxes", "xml", "xmls", "gt"}

_OF_DETECTION |= {"imagesets", "segmentationclass", "segmentationobject", "image", "img", "mask", "label", "annotation"}


def read_folder(root: Path, *, inner: bool = False) -> tuple[list[Entry], list[tuple[str, str]]]:
    """One sub-folder per class, or train, val and test folders with such; either may be the outer one.

    Args:
        root: the folder.
        inner: whether folders within a class folder are classes of their own (`dog/husky`), or belong to it.

    Returns:
        The images, in sorted order of the folders; and (name, reason) of what was skipped.

    Raises:
        DataError: if the folders are arranged in another way, naming them and what to do.
    """
    tops = _parts(root)
    places = _places(root, tops)
    folders = [folder for _, _, folder in places]
    for folder in folders:
        if folder.is_symlink() and root.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{str(folder)!r} is a link to a folder that contains it: a loop. Remove the link.")
    loose = sorted(
        f for top in {root, *tops.values(), *(f.parent for f in folders)} for f in listing(top) if f.is_file()
    )
    names = list(dict.fromkeys(name for _, name, _ in places))
    if not names:
        raise DataError(f"{str(root)!r} has no class folders" + _instead(root, loose))
    kinds = {normalize(name) for name in names}
    if len(kinds) > 1 and kinds & {"images", "imgs", "jpegimages", "image", "img"} and kinds <= _OF_DETECTION:
        raise DataError(
            f"{str(root)!r}: {names} are the folders of a detection or segmentation dataset, not classes. Expected: "
            "a folder of images per class, or a CSV file with the columns path,label."
        )
    if len(places) == 1 and len(subfolders(below := _innermost(folders[0]))) > 1:
        raise DataError(
            f"{str(root)!r} has one folder, {names[0]!r}, with folders in it. If those are the classes or parts, use "
            f"--data.path={str(below)!r}"
        )
    if inner:
        places = [(part, *one) for part, name, folder in places for one in _inner_folders(folder, name)]
        names = [name for _, name, folder in places if not subfolders(folder)]
    found = [
        Entry(legible(file.relative_to(root).as_posix()), file, name, part)
        for part, name, folder in places
        for file in ([f for f in listing(folder) if not f.is_dir()] if inner else list_files(folder))
    ]
    if nested := sorted({one.image.parent for one in found} - {folder for _, _, folder in places}):
        print(
            f"{str(root)!r}: folders within class folders, such as {str(nested[0].relative_to(root))!r}, are not taken "
            "as classes. --data.class_folders=inner makes them classes."
        )
    filled = {normalize(one.label) for one in found}
    if empty := sorted(name for name in names if normalize(name) not in filled):
        raise DataError(f"Class folders without any file: {empty}. Fill or remove them.")
    if doubtful := sorted(name for name in names if is_missing(name)):
        print(f"class names that usually stand for a missing value: {doubtful}. Were their labels lost?")
    skipped = [*((file, "outside the class folders") for file in loose), *skipped_files(root, folders)]
    return found, [(legible(file.relative_to(root).as_posix()), reason) for file, reason in skipped]


def _innermost(folder: Path) -> Path:
    """Past folders that hold nothing but one folder each."""
    while len(below := subfolders(folder)) == 1:
        folder = below[0]
    return folder


def _inner_folders(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """(class, folder) of a class folder and of all below it: `dog`, `dog/husky`. Links are not followed.

    Raises:
        DataError: if one is named like a part: nobody would look for `dog/husky/train`, as a class or as a part.
    """
    yield name, folder
    for below in subfolders(folder):
        if part_of(below.name):
            raise DataError(
                f"{str(below)!r} is named like a part, within a class. Put the parts above the classes, as in "
                f"{below.name}/{name}/; if it is a class, rename it."
            )
        if not below.is_symlink():
            yield from _inner_folders(below, f"{name}/{legible(below.name)}")


def _places(root: Path, tops: dict[str, Path]) -> list[tuple[str, str, Path]]:
    """(part, class, folder) of every class folder."""
    if list(tops) != [""]:
        return [(part, legible(folder.name), folder) for part, top in tops.items() for folder in subfolders(top)]
    classes = subfolders(root)
    _refuse_one_level_up(root, classes)
    inner = {folder: subfolders(folder) for folder in classes}
    divided = [folder for folder, below in inner.items() if below and all(part_of(f.name) for f in below)]
    if len(divided) > 1 and divided == classes and any(part_of(f.name) == "train" for f in inner[classes[0]]):
        print(f"{str(root)!r}: each class folder has a folder per part: {sorted({f.name for f in inner[classes[0]]})}")
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
            "folder; if these are classes, rename them."
        )
    if "train" not in parts:
        raise DataError(
            f"{str(root)!r} has {[f.name for f in folders]} but no train/ folder. To train, add one with the same "
            "class folders; to evaluate on one of them, give its path; if these are classes, rename them."
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
    """Folders named like parts beside others: classes, if it is only a `train` with images; otherwise refused."""
    parts = {folder.name for folder, part in named.items() if part}
    trains = [folder for folder, part in named.items() if part == "train"]
    if len(parts) == len(trains) == 1 and not subfolders(trains[0]):
        print(f"{str(root)!r}: {trains[0].name!r} is taken as a class: it holds images, and is beside {strangers}")
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
