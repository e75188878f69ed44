"""Transcripts, looked at from outside: digest, summary, differences, what stayed opaque."""

import hashlib
import json
from collections import Counter
from typing import Any

OPAQUE_KINDS = ("opaque", "undelimited", "buffer")
# What a record is called in `records`, where that is not its own name.
_SHORT = {f"section-{kind}": kind for kind in ("start", "part", "end", "full")}


def canonical(value: Any) -> bytes:
    """JSON with sorted keys, no white space and only ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def digest(transcript: dict[str, Any]) -> str:
    """SHA-256 (hexadecimal) of the canonical JSON."""
    return hashlib.sha256(canonical(transcript)).hexdigest()


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


def records(transcript: dict[str, Any]) -> list[str]:
    """The framing, one line for each record and footer: offset in bytes, kind, and what names it.

    Bytes of a name outside 21 to 7e, and "%", are %XX; a name of no bytes is "%".
    """
    lines = []
    for record in transcript["records"]:
        kind, body = record["record"], record.get("body", {})
        words = [_SHORT.get(kind, kind)]
        if kind in ("section-part", "section-end"):
            words.append(record["section_id"])
        elif "idstr" in record:
            if "section_id" in record:
                words.append(record["section_id"])
            words += [_word(record["idstr"]), record["instance_id"], record["version_id"]]
            if kind == "record":
                words.append(body["length"] + body.get("rest", 0))
        elif kind == "command":
            words += [record["command"], len(record["payload"]) // 2]
        elif kind == "configuration":
            words.append(_word(record["machine"]))
        elif kind == "header":
            words.append(record["version"])
        elif kind == "vmdescription":
            words.append(record["length"])
        lines.append(" ".join(map(str, [record["offset"], *words])))
        if record.get("footer"):
            lines.append(f"{body['offset'] + body['length']} footer {record['section_id']}")
    return lines


def _word(name: str) -> str:
    escaped = (
        chr(b) if 0x21 <= b <= 0x7E and b != 0x25 else f"%{b:02X}" for b in name.encode("latin-1")
    )
    return "".join(escaped) or "%"


def ram(transcript: dict[str, Any]) -> dict[str, str]:
    """The digest of every RAM block, by its name."""
    return {block["idstr"]: block["digest"] for block in transcript["ram"]}


def features(transcript: dict[str, Any]) -> list[str]:
    """What of the format a stream uses, that not every reader may know."""
    found = set()
    if transcript["version"] in (1, 2):
        found.add(f"version-{transcript['version']}")
    if transcript["footers"]:
        found.add("footers")
    described = any(record["record"] == "vmdescription" for record in transcript["records"])
    if described:
        found.add("vmdesc")
    for record in transcript["records"]:
        kind, body = record["record"], record.get("body", {}).get("kind")
        if kind in ("configuration", "command"):
            found.add({"configuration": kind, "command": "commands"}[kind])
        if body == "ram":
            found.add(f"ram-{record['version_id']}")
            if transcript["page_size"] not in (None, 4096):
                found.add("page-size")
        elif body == "vmstate":
            found |= {"vmstate"} if described else {"vmstate", "schemas"}
        elif body in ("block", "htab", "storage-attributes", "opaque"):
            found.add(body)
        elif body == "buffer" and kind != "record":
            found.add("vmdesc")
    return sorted(found)


def sections(transcript: dict[str, Any]) -> list[str]:
    """What was saved, in stream order and without PARTs: how a section comes, idstr, instance, version.

    Behind them the SHA-256 of a device's body, or of the canonical JSON of its fields and
    subsections, and "footer" where there is one.
    """
    lines = []
    for record in transcript["records"]:
        if record["record"] in ("section-start", "section-end", "section-full", "record"):
            body = record["body"]
            seen = body.get("sha256", "")
            if body["kind"] == "vmstate":
                state = {key: body[key] for key in ("fields", "subsections")}
                seen = hashlib.sha256(canonical(state)).hexdigest()
            key = record["idstr"], record["instance_id"], record["version_id"]
            kind = _SHORT.get(record["record"], record["record"])
            lines.append(section_line(kind, *key, seen, footer=record.get("footer", False)))
    return lines


def section_line(
    kind: str, idstr: str, instance: int, version: int, seen: str = "", *, footer: bool = False
) -> str:
    """A line of `sections`; ``kind`` is "start", "end", "full" or "record"."""
    words = [kind, _word(idstr), str(instance), str(version), seen, "footer" if footer else ""]
    return " ".join(filter(None, words))


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
