"""The description of a stream's devices: finding it, and looking devices up in it."""

import json
import re
from collections import deque
from typing import Any, Final

from savevm_spec.constants import (
    LIMIT_DESCRIPTION_CANDIDATES,
    LIMIT_DESCRIPTION_WINDOW,
    LIMIT_VMDESC_DEPTH,
    LIMIT_VMDESC_VALUES,
    RAM_PAGE_SIZE_MAX,
    RAM_PAGE_SIZE_MIN,
)

__all__ = ["Description", "DescriptionError", "JsonObject", "dumps", "find_description"]

# EOF mark, record type, length below 64 MiB, and the first byte of the JSON object.
_CANDIDATE: Final = re.compile(rb"\x00\x06[\x00-\x04]...\{", re.DOTALL)


class DescriptionError(ValueError):
    """The text of a VMDESCRIPTION is not one; ``rule`` says which rule it breaks."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(detail)
        self.rule: Final = rule


class JsonObject(dict[str, Any]):
    """A JSON object with repeated keys: the first of each counts, ``pairs`` has them all.

    ``groups`` is for those who take the pairs apart.
    """

    pairs: list[tuple[str, Any]]
    groups: list[dict[str, Any]] | None = None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    repeated = JsonObject(reversed(pairs))
    repeated.pairs = pairs
    return repeated


def dumps(value: Any) -> str:
    """JSON text of ``value``, with the repeated keys of a ``JsonObject``."""
    if isinstance(value, dict):
        pairs = value.pairs if isinstance(value, JsonObject) else value.items()
        return "{" + ", ".join([f"{json.dumps(k)}: {dumps(v)}" for k, v in pairs]) + "}"
    if isinstance(value, list):
        return "[" + ", ".join([dumps(v) for v in value]) + "]"
    return json.dumps(value)


def _check_depth(root: Any) -> None:
    level = [root]
    depth = 0
    while level:
        depth += 1
        if depth > LIMIT_VMDESC_DEPTH:
            raise DescriptionError("limit.vmdesc-depth", f"nested deeper than {LIMIT_VMDESC_DEPTH}")
        below: list[Any] = []
        for node in level:
            if isinstance(node, JsonObject):
                below += [v for _, v in node.pairs if isinstance(v, (dict, list))]
            elif isinstance(node, dict):
                below += [v for v in node.values() if isinstance(v, (dict, list))]
            else:
                below += [v for v in node if isinstance(v, (dict, list))]
        level = below


class Description:
    """A parsed VMDESCRIPTION.

    Raises ``DescriptionError`` (rules ``vmdesc.json``, ``limit.vmdesc-depth``,
    ``limit.vmdesc-values``) for a text that is not a JSON object with a list "devices", is nested
    too deeply or has too many values.
    """

    def __init__(self, text: bytes) -> None:
        if sum(text.count(mark) for mark in b",{[") > LIMIT_VMDESC_VALUES:
            raise DescriptionError("limit.vmdesc-values", f"more than {LIMIT_VMDESC_VALUES} values")
        self.text: Final = text
        try:
            root = json.loads(text.decode("utf-8"), object_pairs_hook=_object)
        except RecursionError:
            raise DescriptionError("limit.vmdesc-depth", "nested too deeply") from None
        except ValueError as e:
            raise DescriptionError("vmdesc.json", f"not JSON: {e}") from None
        if isinstance(root, (dict, list)):
            _check_depth(root)
        if not isinstance(root, dict) or not isinstance(root.get("devices"), list):
            raise DescriptionError("vmdesc.json", 'not an object with a list "devices"')
        self.devices: Final[list[Any]] = root["devices"]
        size = root.get("page_size")
        self.page_size: int | None = None
        if (
            type(size) is int
            and RAM_PAGE_SIZE_MIN <= size <= RAM_PAGE_SIZE_MAX
            and not size & (size - 1)
        ):
            self.page_size = size
        self._by_key: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for device in self.devices:
            if isinstance(device, dict):
                name, instance_id = device.get("name"), device.get("instance_id")
                if type(name) is str and type(instance_id) is int:
                    self._by_key.setdefault((name, instance_id), []).append(device)

    def device(self, idstr: str, instance_id: int, occurrence: int) -> dict[str, Any] | None:
        """Entry for the section that is the ``occurrence``-th (from 0) of this key, if any."""
        entries = self._by_key.get((idstr, instance_id))
        return entries[min(occurrence, len(entries) - 1)] if entries else None


def _candidates(data: bytes, start: int) -> list[tuple[int, int]]:
    """(offset of the text, end of the text) of what looks like a VMDESCRIPTION, best first."""
    exact: deque[tuple[int, int]] = deque(maxlen=LIMIT_DESCRIPTION_CANDIDATES)
    others: deque[tuple[int, int]] = deque(maxlen=LIMIT_DESCRIPTION_CANDIDATES)
    match = _CANDIDATE.search(data, start)
    while match:
        text = match.start() + 6
        end = text + int.from_bytes(data[text - 4 : text], "big")
        if end <= len(data) and end - text >= 2 and data[end - 1] == 0x7D:
            (exact if end == len(data) else others).append((text, end))
        match = _CANDIDATE.search(data, match.start() + 1)
    return [*reversed(exact), *reversed(others)][:LIMIT_DESCRIPTION_CANDIDATES]


def find_description(data: bytes) -> Description | None:
    """The VMDESCRIPTION at the end of a stream of which ``data`` is the last part.

    One that reaches exactly to the end is preferred to one with something behind it, a later one to
    an earlier one.  None if there is none; never raises for bad input.
    """
    window = 1 << 17
    while True:
        start = max(0, len(data) - window - 1)
        last = start == 0 or window >= LIMIT_DESCRIPTION_WINDOW
        for text, end in _candidates(data, start):
            if not last and end != len(data):
                break
            try:
                return Description(data[text:end])
            except DescriptionError:
                pass
        if last:
            return None
        window = min(window * 8, LIMIT_DESCRIPTION_WINDOW)
