"""Values that know whether they are whole: a JSON object that carries the hash of everything else in it.

The hash guards against damage (a flipped bit, a file put together from two), not against forgery: whoever writes the object can
write the hash.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

#: The key of the hash.
SEAL = "seal"
_DIGITS = 16


def seal_of(value: Mapping[str, Any]) -> str:
    """Hash of an object without its seal: the first 16 hexadecimal digits of the sha256 of its JSON with sorted keys.

    Args:
        value: A JSON object.
    """
    content = json.loads(json.dumps({key: part for key, part in value.items() if key != SEAL}))  # keys become texts
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()[:_DIGITS]


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """The object with its seal as the last key.

    Args:
        value: A JSON object.
    """
    content = {key: part for key, part in value.items() if key != SEAL}
    return {**content, SEAL: seal_of(content)}


def is_whole(value: Mapping[str, Any]) -> bool:
    """Whether an object is what was sealed; one without a seal is not.

    Args:
        value: A JSON object as it was read.
    """
    return value.get(SEAL) == seal_of(value)


def record_seal(record: Mapping[str, Any]) -> str:
    """Hash of a run's record but for its seal, which stands in its ``provenance`` and not at the top.

    Args:
        record: A record with ``provenance``.
    """
    provenance = {key: part for key, part in record["provenance"].items() if key != SEAL}
    return seal_of({**record, "provenance": provenance})


def sealed_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its seal in ``provenance.seal``.

    Args:
        record: A record with ``provenance``.
    """
    return {**record, "provenance": {**record["provenance"], SEAL: record_seal(record)}}
