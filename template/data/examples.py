"""Where pictures and labels come from. Every source becomes the same `Examples`."""

import csv
import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .images import ImageSource

PARTS = ("train", "val", "test")
PART_OF = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What folders and tables call the parts."""
_JUNK = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}  # compared in lower case; hidden names are junk too


class DataError(ValueError):
    """Data that cannot be trained on or scored. The message says what was found and what to do."""


@dataclass(frozen=True)
class Examples:
    """Pictures with labels, from any source.

    Args:
        ids: what a person would call each picture: its path below the data folder, or `digits/0001`.
        images: file, bytes or array, one a picture.
        labels: int64 [n], index into `class_names`.
        class_names: one a class, in index order.
        parts: [n] of "train", "val", "test", or "" where the source does not say.
        groups: [n] of names that must not be divided between parts (patient, camera, video), or None.
        digests: [n] sha256 of each picture's contents, once they have been read.
        skipped: (id, reason) of what was found beside these and left out.
    """

    ids: np.ndarray
    images: Sequence[ImageSource]
    labels: np.ndarray
    class_names: tuple[str, ...]
    parts: np.ndarray
    groups: np.ndarray | None = None
    digests: np.ndarray | None = None
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray, skipped: Sequence[tuple[str, str]] = ()) -> "Examples":
        """The examples at these positions (or of this boolean mask); `skipped` is added to what was left out."""
        rows = np.arange(len(self))[rows]
        return dataclasses.replace(
            self,
            ids=self.ids[rows],
            images=[self.images[i] for i in rows],
            labels=self.labels[rows],
            parts=self.parts[rows],
            groups=None if self.groups is None else self.groups[rows],
            digests=None if self.digests is None else self.digests[rows],
            skipped=(*self.skipped, *skipped),
        )

    def with_classes(self, class_names: Sequence[str]) -> "Examples":
        """The same examples with labels as indices into another list of classes, matched by name.

        Raises:
            DataError: if a class here is not in the other list.
        """
        unknown = sorted(set(self.class_names) - set(class_names))
        if unknown:
            raise DataError(
                f"The pictures have classes that the model was not trained on: {unknown}. "
                f"It knows {list(class_names)}. Rename or remove these folders or labels."
            )
        index = np.array([list(class_names).index(name) for name in self.class_names])
        return dataclasses.replace(self, labels=index[self.labels], class_names=tuple(class_names))


def load_examples(path: str) -> Examples:
    """Find the pictures and labels at a folder, a CSV file, `tfds:NAME` or `digits`. Decodes nothing.

    Raises:
        DataError: if there is nothing there to train on, saying what was found instead.
    """
    if path == "digits":
        return _digits()
    if path.startswith("tfds:"):
        return _tfds(path.removeprefix("tfds:"))
    place = Path(path).expanduser()
    if not place.exists():
        raise DataError(f"data.path {path!r} does not exist. Expected a folder, a CSV file, tfds:NAME or digits.")
    if place.is_dir():
        return _folder(place)
    if place.suffix.lower() == ".csv":
        return _csv(place)
    raise DataError(f"data.path {path!r} is neither a folder nor a CSV file.")


def list_files(root: Path) -> Iterator[Path]:
    """Files below a folder in sorted order, without hidden ones and the litter of operating systems.

    Raises:
        DataError: if a folder below cannot be listed: its pictures would be missing without a word.
    """

    def stop(error: OSError) -> None:
        raise DataError(f"Folder {error.filename!r} cannot be listed: {error.strerror}.")

    for here, folders, files in os.walk(root, onerror=stop):
        folders[:] = sorted(name for name in folders if not _is_junk(name))
        yield from (Path(here, name) for name in sorted(files) if not _is_junk(name))


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


def _passed_over(root: Path, classes: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """What `list_files` leaves out and a person may miss, with the reason: hidden files, litter, links to folders.

    Not listed are the small files that operating systems leave everywhere (.DS_Store, Thumbs.db, ._name.jpg).
    """
    for here, folders, files in os.walk(root):
        for name in sorted(folders):
            if _is_junk(name):
                yield (
                    Path(here, name),
                    "a hidden folder, or litter of a system or program; rename it if it holds pictures",
                )
            elif Path(here, name).is_symlink() and Path(here, name) not in classes:
                yield Path(here, name), "a link to a folder is not followed; copy the pictures"
        folders[:] = [name for name in folders if not _is_junk(name)]
        hidden = (name for name in sorted(files) if name.startswith(".") and Path(name).suffix)
        yield from ((Path(here, n), "a hidden file; rename it if it is wanted") for n in hidden if n[:2] != "._")


def _parts(root: Path) -> dict[str, Path]:
    """Folders of train, val and test, or the root itself as the part that nobody named."""
    folders = _subfolders(root)
    roots = {PART_OF.get(f.name.lower(), ""): f for f in folders}
    if "train" in roots:
        strangers = [f.name for f in folders if f.name.lower() not in PART_OF]
        if strangers:
            raise DataError(f"{str(root)!r} has train/ beside {strangers}: expected only train/, val/ and test/.")
        if len(roots) < len(folders):
            raise DataError(f"{str(root)!r} names a part twice: {[f.name for f in folders]}.")
        return roots
    if len(folders) > 0 and all(f.name.lower() in PART_OF for f in folders):
        raise DataError(f"{str(root)!r} has {[f.name for f in folders]} but no train/ folder.")
    return {"": root}


def _folder(root: Path) -> Examples:
    """One sub-folder a class, or train/ val/ test/ folders of such."""
    roots = _parts(root)
    classes = [folder for top in roots.values() for folder in _subfolders(top)]
    for folder in classes:
        if folder.is_symlink() and root.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{str(folder)!r} is a link to a folder that contains it: a loop. Remove the link.")
    found = [(part, _text(folder.name), file) for part, top in roots.items() for folder in _subfolders(top)
             for file in list_files(folder)]  # fmt: skip
    loose = [f for top in {root, *roots.values()} for f in _listing(top) if f.is_file()]
    names = sorted({_text(folder.name) for folder in classes})
    if not names:
        raise DataError(
            f"{str(root)!r} has no class folders"
            + (f", only {len(loose)} files. Put the pictures of each class into a folder of its own." if loose else ".")
        )
    if len(classes) == 1 and len(_subfolders(classes[0])) > 1:
        raise DataError(
            f"{str(root)!r} has one folder, {names[0]!r}, with folders in it. If those are the classes or parts, use "
            f"--data.path={str(classes[0])!r}"
        )
    for one, other in itertools.combinations(names, 2):
        if one.casefold() == other.casefold():
            print(f"classes {one!r} and {other!r} differ in case only: on Windows and macOS they would be one folder")
    empty = sorted(set(names) - {name for _, name, _ in found})
    if empty:
        raise DataError(f"Class folders without any file: {empty}. Fill or remove them.")
    return Examples(
        ids=np.array([_text(file.relative_to(root).as_posix()) for _, _, file in found]),
        images=[file for _, _, file in found],
        labels=np.array([names.index(name) for _, name, _ in found], np.int64),
        class_names=tuple(names),
        parts=np.array([part for part, _, _ in found]),
        skipped=tuple(
            (_text(file.relative_to(root).as_posix()), reason)
            for file, reason in [
                *((file, "outside the class folders") for file in sorted(loose)),
                *_passed_over(root, classes),
            ]
        ),
    )


def _subfolders(root: Path) -> list[Path]:
    return [f for f in _listing(root) if f.is_dir()]


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(f for f in folder.iterdir() if not _is_junk(f.name))
    except OSError as error:
        raise DataError(f"Folder {str(folder)!r} cannot be listed: {error.strerror}.") from error


def _text(name: str) -> str:
    """A file's name for tables and reports, which are UTF-8; bytes of another encoding are spelled out in it."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _csv(file: Path) -> Examples:
    """Columns `path,label` and optional `split` and `group`; paths are relative to the file's folder."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, skipinitialspace=True)
            columns = reader.fieldnames or []
            numbered = [(reader.line_num, row) for row in reader]  # blank lines are no rows, but they are lines
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{str(file)!r} cannot be read as CSV in UTF-8: {error}") from error
    if not {"path", "label"} <= set(columns):
        raise DataError(f"{str(file)!r} needs columns path,label (optional: split,group). Received: {columns}")
    if not numbered:
        raise DataError(f"{str(file)!r} has no rows below its header.")
    for line, row in numbered:
        if None in row:
            raise DataError(
                f"{str(file)!r} line {line} has more fields than the header ({columns}). "
                f'Write a text with a comma as "a, b". Received: {[*row.values()]}'
            )
        if not (row["path"] or "").strip() or not (row["label"] or "").strip():
            raise DataError(f"{str(file)!r} line {line}: path and label must both be given. Received: {dict(row)}")
        if (row.get("split") or "").strip().lower() not in {"", *PART_OF}:
            raise DataError(f"{str(file)!r} line {line}: split must be train, val or test. Received: {row['split']!r}")
    rows = [row for _, row in numbered]
    names = sorted({row["label"].strip() for row in rows})
    return Examples(
        ids=np.array([row["path"].strip() for row in rows]),
        images=[file.parent / row["path"].strip() for row in rows],
        labels=np.array([names.index(row["label"].strip()) for row in rows], np.int64),
        class_names=tuple(names),
        parts=np.array([PART_OF.get((row.get("split") or "").strip().lower(), "") for row in rows]),
        groups=np.array([(row["group"] or "").strip() for row in rows]) if "group" in columns else None,
    )


def _tfds(name: str) -> Examples:
    """A TensorFlow dataset with an image and a class label; the encoded bytes go through our own decoder."""
    import tensorflow_datasets as tfds  # seconds to import, and few runs need it

    try:
        builder = tfds.builder(name)
        builder.download_and_prepare()
    except Exception as error:
        raise DataError(f"TensorFlow dataset {name!r} could not be loaded: {error}") from error
    keys = builder.info.supervised_keys
    if not keys or not isinstance(builder.info.features[keys[1]], tfds.features.ClassLabel):
        raise DataError(f"TensorFlow dataset {name!r} is not one of images with one class label each.")
    class_names = tuple(builder.info.features[keys[1]].names)
    ids, images, labels, parts, skipped = [], [], [], [], []
    for split in builder.info.splits:
        part = PART_OF.get(split, "") if len(builder.info.splits) > 1 else ""
        if part or len(builder.info.splits) == 1:
            raw = tfds.load(name, split=split, decoders={keys[0]: tfds.decode.SkipDecoding()})
            for number, example in enumerate(tfds.as_numpy(raw)):
                if example[keys[1]] < 0:  # how TensorFlow Datasets marks a test set whose labels are kept secret
                    skipped.append((f"{split}/{number:06d}", "it has no label"))
                    continue
                ids.append(f"{split}/{number:06d}")
                images.append(bytes(example[keys[0]]))
                labels.append(int(example[keys[1]]))
                parts.append(part)
    labels = np.array(labels, np.int64)
    return Examples(np.array(ids), images, labels, class_names, np.array(parts), skipped=tuple(skipped))


def _digits() -> Examples:
    """1,797 handwritten digits, 8 x 8 grey (Alpaydin and Kaynak 1998), shipped inside scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return Examples(
        ids=np.array([f"digits/{i:04d}" for i in range(len(digits.target))]),
        images=list((digits.images * (255 / 16)).astype(np.uint8)),
        labels=digits.target.astype(np.int64),
        class_names=tuple(str(d) for d in range(10)),
        parts=np.full(len(digits.target), ""),
    )
