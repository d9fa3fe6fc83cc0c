"""The tokenised cache gives what was written, or builds it again; never anything else."""

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curlora_lab.data.cache import encode_cached
from curlora_lab.data.encoding import Encoded, Encoder

ROWS = [("the cat sat on a mat",), ("he said that film was good",), ("x",)]


@pytest.fixture
def encoder(tokenizer: Any) -> Encoder:
    return Encoder(tokenizer, columns=["a"], max_length=8)


def equal(one: Encoded, other: Encoded) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        and getattr(one, name).dtype == getattr(other, name).dtype
        for name in ("ids", "offsets", "truncated")
    )


def built(cache: Path) -> Path:
    (path,) = cache.glob("*.safetensors")
    return path


def refuse(*_: Any) -> Encoded:
    raise AssertionError("the cache should have been read")


def test_the_second_time_it_is_read(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encode_cached(encoder, ROWS, tmp_path / "new" / "cache")
    assert [path.suffix for path in (tmp_path / "new" / "cache").iterdir()] == [".safetensors"]
    monkeypatch.setattr(Encoder, "encode", refuse)
    assert equal(first, encode_cached(encoder, ROWS, tmp_path / "new" / "cache"))


def test_other_content_is_another_file(encoder: Encoder, tokenizer: Any, tmp_path: Path) -> None:
    encode_cached(encoder, ROWS, tmp_path)
    encode_cached(encoder, ROWS[::-1], tmp_path)
    encode_cached(Encoder(tokenizer, columns=["a"], max_length=7), ROWS, tmp_path)
    encode_cached(Encoder(tokenizer, columns=["a", "b"], max_length=8), [("a", "bc")], tmp_path)
    encode_cached(Encoder(tokenizer, columns=["a", "b"], max_length=8), [("ab", "c")], tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_every_truncation_is_built_again(encoder: Encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    right = encode_cached(encoder, ROWS, tmp_path)
    path = built(tmp_path)
    content = path.read_bytes()
    lengths = range(0, len(content), 3)
    for length in lengths:
        path.write_bytes(content[:length])
        assert equal(right, encode_cached(encoder, ROWS, tmp_path))
        assert path.read_bytes() == content
    assert caplog.text.count("is damaged and is built again") == len(lengths)


def test_every_flipped_bit_is_harmless(encoder: Encoder, tmp_path: Path) -> None:
    right = encode_cached(encoder, ROWS, tmp_path)
    path = built(tmp_path)
    content = path.read_bytes()
    for byte in range(len(content)):
        flipped = bytearray(content)
        flipped[byte] ^= 1 << byte % 8
        path.write_bytes(bytes(flipped))
        assert equal(right, encode_cached(encoder, ROWS, tmp_path))


def test_a_file_of_other_rows_under_this_name_is_not_believed(
    encoder: Encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encode_cached(encoder, ROWS[:2], tmp_path / "other")
    right = encode_cached(encoder, ROWS, tmp_path / "cache")
    built(tmp_path / "cache").write_bytes(built(tmp_path / "other").read_bytes())
    with caplog.at_level(logging.WARNING):
        assert equal(right, encode_cached(encoder, ROWS, tmp_path / "cache"))
    assert "sha256 is" in caplog.text


def test_a_disk_that_cannot_be_written_stops_nothing(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    encoded = encode_cached(encoder, ROWS, tmp_path)
    assert len(encoded) == 3
    assert list(tmp_path.iterdir()) == []
    assert "No space left on device" in caplog.text
    assert "bytes); going on without it" in caplog.text


def test_old_leftovers_go_and_fresh_ones_stay(encoder: Encoder, tmp_path: Path) -> None:
    old, fresh = tmp_path / "old.tmp", tmp_path / "fresh.tmp"
    for path in (old, fresh):
        path.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    encode_cached(encoder, ROWS, tmp_path)
    assert not old.exists()
    assert fresh.exists()


def test_built_at_the_same_time_by_many(encoder: Encoder, tmp_path: Path) -> None:
    right = encoder.encode(ROWS)
    found: list[Encoded] = []
    threads = [threading.Thread(target=lambda: found.append(encode_cached(encoder, ROWS, tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(equal(right, one) for one in found)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
