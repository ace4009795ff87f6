"""Images by the million: which there are, in an order that does not change, and the bytes of one.

A folder, a file that lists paths or addresses, or an address that fsspec knows (`s3://bucket/photos`, `gs://`, `az://`,
`hdfs://`, `file://`), for which the package that it names must be installed.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...data.images.read import MAX_BYTES, read
from ...data.images.reasons import ReadError
from ...data.sources.files import is_junk, list_files
from ...data.sources.names import DataError

TRIES, PAUSE = 3, 1.0
"""How often an address is read before its image counts as unreadable, and seconds before the second time (then twice
as long): bucket stores now and then refuse what they give a moment later."""


def list_images(source: str) -> Iterator[str]:
    """Absolute paths or addresses of all images of a source, each once.

    A folder or a bucket is walked in sorted order, a folder of it in memory at a time; hidden and system files are left
    out. A list is read as a whole and sorted; its relative paths are relative to it.

    Raises:
        DataError: if the source, or a folder in it, cannot be listed.
    """
    if is_address(source):
        return _list_address(source)
    place = Path(os.path.abspath(source))  # noqa: PTH100 (links stay what they are)
    if place.is_dir():
        return map(str, list_files(place))
    if place.is_file():
        return iter(_read_list(place))
    raise DataError(
        f"{source!r} is not there. Expected a folder, a file that lists images, or an address like s3://..."
    )


def is_address(place: str) -> bool:
    """Whether a text is an address for fsspec, and no path."""
    return "://" in place


def read_image(place: str) -> bytes:
    """Contents of the file at a path or an address.

    Raises:
        ReadError: with the reason, if it cannot be read; an address is tried several times.
    """
    if not is_address(place):
        return read(Path(place))
    for attempt in range(TRIES):
        time.sleep(PAUSE * 2 ** (attempt - 1) if attempt else 0)
        try:
            files, path = _open_address(place)
            contents = files.cat_file(path, end=MAX_BYTES + 1)
            break
        except FileNotFoundError:
            raise ReadError("no such file; restore or remove it") from None
        except PermissionError:
            raise ReadError("no permission to read it; change its permissions") from None
        except Exception as error:  # of whatever package reads from there
            reason = f"cannot be read: {type(error).__name__}: {' '.join(str(error).split())}; try again"
    else:
        raise ReadError(reason)
    if len(contents) > MAX_BYTES:
        raise ReadError(f"it has more than {MAX_BYTES:,} bytes; is it an image? Make it smaller")
    return contents


def _open_address(address: str) -> tuple[Any, str]:
    """File system and path of an address."""
    import fsspec

    return fsspec.core.url_to_fs(address, use_listings_cache=False)  # which would hold every name ever seen


def _list_address(address: str) -> Iterator[str]:
    try:
        files, root = _open_address(address)
        if not files.isdir(root):
            raise DataError(f"{address!r} is not there, or no folder. Expected one with images.")
    except (ImportError, ValueError) as error:
        raise DataError(f"{address!r} cannot be opened: {error}") from error
    yield from _walk(files, root)


def _walk(files: Any, folder: str) -> Iterator[str]:
    """Addresses below a folder in sorted order, folder by folder."""
    try:
        entries = sorted(files.ls(folder, detail=True), key=lambda entry: entry["name"])
    except Exception as error:  # of whatever package reads from there
        raise DataError(f"Folder {files.unstrip_protocol(folder)!r} cannot be listed: {error}") from error
    for entry in entries:
        name = entry["name"].rstrip("/")
        if is_junk(name.rpartition("/")[2]) or name == folder.rstrip("/"):
            continue
        if entry["type"] == "directory":
            yield from _walk(files, name)
        else:
            yield files.unstrip_protocol(name)


def _read_list(file: Path) -> list[str]:
    try:
        lines = {line.strip() for line in file.read_text(encoding="utf-8").splitlines()} - {""}
    except UnicodeDecodeError:
        raise DataError(f"{str(file)!r} is no list: expected one path or address in a line, in UTF-8.") from None
    # What stays is absolute: joined to the folder of the list, an absolute path is itself.
    return sorted(line if is_address(line) else str(file.parent / line) for line in lines)
