"""Files that are whole or absent: atomic writes, and folders that count only once their manifest is written."""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from curlora_lab.integrity import is_whole, sealed

logger = logging.getLogger(__name__)

MANIFEST = "MANIFEST.json"

#: What the system says when there is no room: no space, quota reached, file larger than allowed.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

#: Bytes that a new folder, or the entry of a new file, takes on the common file systems: one block.
BLOCK = 4096

_SET_ASIDE = re.compile(r"\.(?P<name>.+)\.old\.\d+\.tmp")


class StorageError(OSError):
    """There is no room to write something; what was there before is unchanged."""


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    The temporary file lies in the same folder (a rename across file systems is a copy), file and folder are synced.

    Raises:
        StorageError: there is no room; names path and bytes.
    """
    content = content.encode() if isinstance(content, str) else content
    temporary = temporary_name(path)
    try:
        with naming_what_is_full(path, len(content)):
            make_folder(path.parent)
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def replacing(final: Path, *, size: int) -> Iterator[Path]:
    """An empty folder to fill, which then takes the final name; nothing half-written ever has that name.

    Args:
        final: the folder to make, or to replace.
        size: about how many bytes will be written, for the message when there is no room.

    Raises:
        StorageError: there is no room; what had the final name is unchanged, and nothing else is left.
    """
    temporary = temporary_name(final)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with naming_what_is_full(final, size):
            make_folder(temporary)
            yield temporary
            old = temporary_name(final, "old")
            if final.exists():
                shutil.rmtree(old, ignore_errors=True)
                final.rename(old)
            temporary.rename(final)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(final.parent)


def temporary_name(path: Path, what: str = "new") -> Path:
    """A name beside ``path`` that :func:`remove_leftovers` knows; no two processes have the same."""
    return path.with_name(f".{path.name}.{what}.{os.getpid()}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written below a folder; only for whoever holds its lock.

    What :func:`replacing` had set aside and not yet replaced takes its name again: it is the only copy.
    """
    for path in sorted(folder.rglob(".*.tmp")):
        aside = _SET_ASIDE.fullmatch(path.name)
        if aside is not None and path.exists() and not os.path.lexists(path.with_name(aside["name"])):
            path.rename(path.with_name(aside["name"]))
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def naming_what_is_full(path: Path, size: int) -> Iterator[None]:
    """Say of a write that failed for want of room what it was and what it needs.

    Args:
        path: what is being written.
        size: bytes that it needs, about; a folder or the entry of a file takes at least a :data:`BLOCK`.

    Raises:
        StorageError: instead of the system's error; every other error passes.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not _no_room(error):
            raise
        raise StorageError(
            f"{path} could not be written ({_words(error)}); it needs {size or BLOCK} bytes, and {_free(path)} are free there. "
            "What was there before is unchanged. Make room or choose another output_dir; then the same command goes on."
        ) from error


def _no_room(error: OSError | SafetensorError) -> bool:
    if isinstance(error, StorageError):
        return False  # says it already
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in NO_ROOM
    code = re.search(r"(?:os error|Errno) (\d+)", str(error))  # safetensors writes from Rust; shutil lists many errors
    return code is not None and int(code[1]) in NO_ROOM


def _words(error: OSError | SafetensorError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _free(path: Path) -> str:
    """Free bytes of the file system that a path is or will be on."""
    for folder in path.parents:
        if folder.is_dir():
            return f"{shutil.disk_usage(folder).free} bytes"
    return "an unknown number of bytes"


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in the order given; NaN and infinities are refused, as JSON has none."""
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file; an empty one where there is none or it is damaged."""
    if not path.is_file():  # a pipe or a device would never end
        return {}
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def make_folder(folder: Path) -> None:
    """Make a folder and those that it lies in, and have each new one's name on disk; one that is there is left as it is."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(new):
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make durable what was written to a file, or renamed inside a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size_below(folder: Path) -> int:
    """Bytes of all files below a folder, and of one :data:`BLOCK` for each folder."""
    return sum(BLOCK if path.is_dir() else path.stat().st_size for path in [folder, *folder.rglob("*")])


def hash_file(path: Path) -> str:
    """Sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Sha256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Declare a folder whole: the sha256 of every file below it, written last and sealed.

    Args:
        folder: the folder; its files are complete.
        about: what the folder is, kept beside the hashes.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / MANIFEST)
    for path in [*files, *{file.parent for file in files if file.parent != folder}]:
        sync_folder(path)
    hashes = {str(file.relative_to(folder)): hash_file(file) for file in files}
    write_json(folder / MANIFEST, sealed({**about, "files": hashes}))


def read_manifest(folder: Path, name: str = MANIFEST) -> dict[str, Any] | None:
    """The manifest of a folder, whole itself, whose files are all there and unchanged; else ``None``.

    A folder without a manifest never happened and is passed over in silence; a damaged one is named, with the hash that
    was expected and the one found.
    """
    path = folder / name
    if not path.is_file():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        expected: dict[str, str] = dict(manifest["files"])
        if not is_whole(manifest):
            raise ValueError("its seal does not hold")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        logger.warning("%s is damaged; the folder is not used.", path)
        return None
    for name, wanted in expected.items():
        file = folder / name
        if "\0" in name or not file.resolve().is_relative_to(folder.resolve()):
            logger.warning("%s names %r, outside its folder; the folder is not used.", path, name)
            return None
        found = hash_file(file) if file.is_file() else "no file"
        if found != wanted:
            logger.warning("%s: expected sha256 %s, found %s; the folder is not used.", file, wanted, found)
            return None
    return manifest
