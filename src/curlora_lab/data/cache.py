"""Tokenised rows on disk, keyed by content: what is read is what was written, or it is built again."""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from curlora_lab.data.encoding import Encoded, Encoder

logger = logging.getLogger(__name__)

STALE_SECONDS = 3600.0  # a temporary file this old belongs to a process that was killed


def encode_cached(encoder: Encoder, rows: Sequence[Sequence[str]], cache_dir: Path | None) -> Encoded:
    """Tokenise rows, or read the result of the last time.

    The key is the sha256 of the tokenizer's content, template, length and texts, so nothing stale can be found under it.
    Processes that build the same rows at the same time each write a whole file of their own, and the last rename wins: all
    hold the same bytes. A file that is not what was written is built again, with a line in the log.

    Args:
        encoder: How rows are tokenised.
        rows: One text a column for each row.
        cache_dir: Folder of the cache, made if missing; None for no cache.

    Returns:
        Token ids of all rows.

    Raises:
        DataError: As ``Encoder.encode``.
    """
    if cache_dir is None:
        return encoder.encode(rows)
    key = _key(encoder, rows)
    path = cache_dir / f"{key[:32]}.safetensors"
    if path.exists():
        try:
            return _read(path, key, len(rows))
        except (ValueError, OSError, SafetensorError) as error:
            logger.warning("tokenised cache %s is damaged and is built again: %s", path, error)
    encoded = encoder.encode(rows)
    try:
        _write(path, key, encoded)
    except OSError as error:
        size = encoded.ids.nbytes + encoded.offsets.nbytes + encoded.truncated.nbytes
        logger.warning("tokenised cache %s cannot be written (%s; %d bytes); going on without it", path, error, size)
    return encoded


def _key(encoder: Encoder, rows: Sequence[Sequence[str]]) -> str:
    digest = hashlib.sha256(encoder.identity.encode())
    for row in rows:
        digest.update(json.dumps(list(row)).encode())  # JSON: no two lists of texts look the same
    return digest.hexdigest()


def _digest(key: str, encoded: Encoded) -> str:
    digest = hashlib.sha256(key.encode())
    for array in (encoded.ids, encoded.offsets, encoded.truncated):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read(path: Path, key: str, rows: int) -> Encoded:
    """Read and verify; safetensors itself has no checksum and loads a flipped bit without a word."""
    with safe_open(path, framework="numpy") as file:
        expected = (file.metadata() or {}).get("sha256")
        arrays = {name: file.get_tensor(name) for name in ("ids", "offsets", "truncated")}
    encoded = Encoded(arrays["ids"], arrays["offsets"], arrays["truncated"])
    found = _digest(key, encoded)
    if found != expected:
        raise ValueError(f"sha256 is {found}, expected {expected}")
    if len(encoded) != rows:
        raise ValueError(f"it holds {len(encoded)} rows, expected {rows}")
    return encoded


def _write(path: Path, key: str, encoded: Encoded) -> None:
    """Write to a temporary file in the same folder, then rename: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path.parent)
    arrays: dict[str, NDArray[Any]] = {"ids": encoded.ids, "offsets": encoded.offsets, "truncated": encoded.truncated}
    content = safetensors.numpy.save(arrays, metadata={"sha256": _digest(key, encoded)})
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def _remove_stale(folder: Path) -> None:
    for leftover in folder.glob("*.tmp"):
        with contextlib.suppress(OSError):  # another process may have removed or renamed it
            if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                leftover.unlink()
