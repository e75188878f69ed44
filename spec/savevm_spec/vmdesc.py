"""The VMDESCRIPTION (since 2.3): ``06``, be32 length and a JSON text that describes all devices.

It stands behind the EOF mark, but the bodies before it can be read only with it.  So a reader
looks for it first.  Origin: qemu_savevm_state_complete_precopy.
"""

import json
import re
from collections import deque
from typing import Any, Final

from construct import Const, Int8ub, Int32ub, Struct, Tell

from .combinators import Noted, Whole, held, limited_bytes
from .constants import (
    LIMIT_DESCRIPTION_CANDIDATES,
    LIMIT_DESCRIPTION_WINDOW,
    LIMIT_VMDESC,
    LIMIT_VMDESC_DEPTH,
    LIMIT_VMDESC_VALUES,
    RAM_PAGE_SIZE_MAX,
    RAM_PAGE_SIZE_MIN,
    VMDESCRIPTION,
)
from .errors import GrammarError
from .reading import reading


class Object(dict[str, Any]):
    """A JSON object.  Keys may repeat: as a mapping it has the first of each, ``pairs`` all."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(reversed(pairs))
        self.pairs: Final = pairs


def is_int(value: object) -> bool:
    """Whether the JSON value is an integer; true and false are not."""
    return type(value) is int


def _children(value: Any) -> list[Any]:
    return [child for _, child in value.pairs] if isinstance(value, Object) else value


def loads(text: str) -> Any:
    """The JSON value of ``text``, with ``Object`` for its objects.

    Raises RecursionError for lists and objects nested deeper than ``LIMIT_VMDESC_DEPTH``, and
    ValueError for what is not JSON.
    """
    document = json.loads(text, object_pairs_hook=Object)
    nested = [document]
    for _ in range(LIMIT_VMDESC_DEPTH + 1):
        nested = [x for x in nested if isinstance(x, list | Object)]
        if not nested:
            return document
        nested = [child for x in nested for child in _children(x)]
    raise RecursionError(f"nested deeper than {LIMIT_VMDESC_DEPTH} levels")


class TooManyValues(ValueError):
    """A text with more values than a reader is to keep."""


class Description:
    """The document of a VMDESCRIPTION.

    ``page_size`` is the target page size in bytes that it states, or None; ``devices`` has the
    entries by name and instance id, in their order.  Raises ValueError and RecursionError as
    ``loads`` does, ValueError for another shape, and TooManyValues.
    """

    def __init__(self, text: bytes) -> None:
        if sum(text.count(mark) for mark in b",{[") > LIMIT_VMDESC_VALUES:
            raise TooManyValues(f"more than {LIMIT_VMDESC_VALUES} values")
        document = loads(text.decode("utf-8"))
        if not isinstance(document, Object) or not isinstance(document.get("devices"), list):
            raise ValueError('not an object with a list "devices"')
        self.count: Final = len(document["devices"])
        self.devices: Final[dict[tuple[str, int], list[Object]]] = {}
        for device in document["devices"]:
            if (
                isinstance(device, Object)
                and isinstance(device.get("name"), str)
                and is_int(device.get("instance_id"))
            ):
                key = device["name"], device["instance_id"]
                self.devices.setdefault(key, []).append(device)
        size: Any = document.get("page_size")
        stated = (
            is_int(size)
            and RAM_PAGE_SIZE_MIN <= size <= RAM_PAGE_SIZE_MAX
            and size & (size - 1) == 0
        )
        self.page_size: Final[int | None] = size if stated else None


_CANDIDATE = re.compile(rb"\x00\x06(?=.{4}\{)", re.DOTALL)


def discover(data: bytes) -> Description | None:
    """The description in ``data``, a whole stream, if it has one.

    It is looked for near the end, first where its length reaches exactly the end.
    """
    window = max(len(data) - LIMIT_DESCRIPTION_WINDOW - 1, 0)
    ends: dict[bool, deque[tuple[int, int]]] = {
        last: deque(maxlen=LIMIT_DESCRIPTION_CANDIDATES) for last in (True, False)
    }
    for match in _CANDIDATE.finditer(data, window):
        start = match.end() + 4
        end = start + int.from_bytes(data[match.end() : start])
        if start + 2 <= end <= len(data) and data[end - 1] == ord("}"):
            ends[end == len(data)].append((start, end))
    candidates = [*reversed(ends[True]), *reversed(ends[False])]
    for start, end in candidates[:LIMIT_DESCRIPTION_CANDIDATES]:
        try:
            return Description(data[start:end])
        except (ValueError, RecursionError):
            continue
    return None


def _describe(this: Any) -> Description:
    start = this.offset + 5
    try:
        description = Description(this.text)
    except RecursionError as error:
        raise GrammarError("limit.vmdesc-depth", start, str(error)) from error
    except TooManyValues as error:
        raise GrammarError("limit.vmdesc-values", start, str(error)) from error
    except ValueError as error:
        raise GrammarError("vmdesc.json", start, str(error)) from error
    state = reading(this)
    sizes = {description.page_size, state.target_page_size} - {None}
    if len(sizes) > 1:
        state.report("vmdesc.page-size", this.offset)
    return description


VmDescription = Whole(
    "vmdesc.truncated",
    Struct(
        "offset" / Tell,
        "type" / Const(VMDESCRIPTION, Int8ub),
        "text" / limited_bytes(held("limit.vmdesc-size", Int32ub, lambda n, _: n <= LIMIT_VMDESC)),
        "description" / Noted(_describe),
    ),
)


def transcript(record: Any) -> dict[str, Any]:
    """The entry of a VMDESCRIPTION in a transcript; length in bytes of its text."""
    return {
        "record": "vmdescription",
        "offset": record.offset,
        "length": len(record.text),
        "devices": record.description.count,
    }
