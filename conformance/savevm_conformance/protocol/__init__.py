"""The protocol between the suite and whoever is held against it: JSON lines, version 1.

``v1.json`` is its schema, `serve` the adapter's side for adapters in Python, `client` the suite's.
"""

import json
from functools import cache
from importlib.resources import files
from typing import Any, Final

__all__ = ["CLASSES", "NO_ANSWER", "PROTOCOL", "ROLES", "SAYS", "schema"]

PROTOCOL: Final = 1
ROLES: Final = ("reader", "loader", "writer", "peer")
# What a verdict may contain; an adapter declares which of them its verdicts do.
SAYS: Final = (
    "class",
    "offset",
    "section",
    "rule",
    "findings",
    "dialect",
    "records",
    "ram",
    "transcript",
    "rebuilt",
)
# The outcomes that have a ``why``: the question was not answered.
NO_ANSWER: Final = ("skip", "error", "crash", "timeout", "memory")
# The class of an error, by the errno of the rule that was broken.
CLASSES: Final = {
    "EIO": "truncated",
    "EINVAL": "malformed",
    "ENOTSUP": "unsupported",
    "EFBIG": "limit",
    "ENOENT": "unknown",
    "ERANGE": "range",
}


@cache
def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of every message, each under ``$defs``."""
    text = files(__package__).joinpath("v1.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded
