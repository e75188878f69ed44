"""Transcripts, looked at from outside: digest, summary, differences, what stayed opaque."""

import hashlib
import json
from collections import Counter
from typing import Any

OPAQUE_KINDS = ("opaque", "undelimited", "buffer")


def digest(transcript: dict[str, Any]) -> str:
    """SHA-256 (hexadecimal) of the canonical JSON."""
    text = json.dumps(transcript, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def summary(transcript: dict[str, Any]) -> list[str]:
    """One line per record."""
    return [_line(record) for record in transcript["records"]]


def _line(record: dict[str, Any]) -> str:
    kind, body = record["record"], record.get("body")
    parts = [f"{record['offset']} {kind}"]
    if "idstr" in record:
        parts.append(f"{record['idstr']}/{record['instance_id']} version {record['version_id']}")
    for key in ("version", "machine", "name", "devices"):
        if key in record:
            parts.append(f"{key} {record[key]}")
    if body is not None:
        parts.append(f"{body['kind']} of {body['length']}")
    return " ".join(parts)


def opaque(transcript: dict[str, Any]) -> dict[str, int]:
    """How many bodies and packages nobody looked into, by ``"<kind> <idstr>"``."""
    found: Counter[str] = Counter()
    for record in transcript["records"]:
        if record.get("body", {}).get("kind") in OPAQUE_KINDS:
            found[f"{record['body']['kind']} {record['idstr']}"] += 1
        elif "package" in record:
            found[f"package {record['name']}"] += 1
    return dict(sorted(found.items()))


def difference(one: Any, other: Any, where: str = "transcript") -> str | None:
    """The first place where two transcripts differ, with both values, or None."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            if key not in one or key not in other:
                return f"{where}.{key}: only in the {'first' if key in one else 'second'}"
            if found := difference(one[key], other[key], f"{where}.{key}"):
                return found
        return None
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        for index, (left, right) in enumerate(zip(one, other, strict=False)):
            if found := difference(left, right, f"{where}[{index}]"):
                return found
        if len(one) != len(other):
            return f"{where}: {len(one)} elements and {len(other)}"
        return None
    if one == other and type(one) is type(other):
        return None
    return f"{where}: {_short(one)} and {_short(other)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
