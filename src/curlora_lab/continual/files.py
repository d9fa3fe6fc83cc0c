"""Files that are whole or absent: atomic writes, and folders that count only once their manifest is written."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MANIFEST = "MANIFEST.json"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    The temporary file lies in the same folder (a rename across file systems is a copy), file and folder are synced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in the order given; NaN and infinities are refused, as JSON has none."""
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file; an empty one where there is none or it is damaged."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """Sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Sha256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Declare a folder whole: the sha256 of every file below it, written last.

    Args:
        folder: the folder; its files are complete.
        about: what the folder is, kept beside the hashes.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / MANIFEST)
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    hashes = {str(file.relative_to(folder)): hash_file(file) for file in files}
    write_json(folder / MANIFEST, {**about, "files": hashes})


def read_manifest(folder: Path, name: str = MANIFEST) -> dict[str, Any] | None:
    """The manifest of a folder whose files are all there and unchanged, else ``None``.

    A folder without a manifest never happened and is passed over in silence; a damaged one is named, with the hash that
    was expected and the one found.
    """
    path = folder / name
    if not path.is_file():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        expected: dict[str, str] = dict(manifest["files"])
    except (ValueError, KeyError, TypeError, AttributeError):
        logger.warning("%s is damaged; the folder is not used.", path)
        return None
    for name, wanted in expected.items():
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            logger.warning("%s names %r, outside its folder; the folder is not used.", path, name)
            return None
        found = hash_file(file) if file.is_file() else "no file"
        if found != wanted:
            logger.warning("%s: expected sha256 %s, found %s; the folder is not used.", file, wanted, found)
            return None
    return manifest
