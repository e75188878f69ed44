"""vmstate layouts that no stream describes, as data with their origin."""

import json
from functools import cache
from typing import Any


@cache
def pointer_arrays() -> dict[str, dict[str, Any]]:
    """Layout of one element of an array of pointers, by ``"<vmsd name>.<field name>"``.

    QEMU up to 9.2 describes such an array as if every element were like the first: when that is
    null, the description says ``"struct": {}`` and nothing of the others.
    """
    from pathlib import Path

    text = Path(__file__).with_name("pointer_arrays.json").read_text("utf-8")
    arrays: dict[str, dict[str, Any]] = json.loads(text)["arrays"]
    return arrays
