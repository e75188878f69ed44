"""The file header: be32 magic "QEVM", be32 version and, in version 2, be64 total length.

The total length counts the bytes behind it.  Origin: qemu_loadvm_state, all versions.
"""

from typing import Any

from construct import Const, If, Int32ub, Int64ub, OneOf, Struct, this

from .combinators import Ruled, Whole
from .constants import MAGIC, VERSION_1, VERSION_2, VERSION_3

Header = Whole(
    "header.truncated",
    Struct(
        "magic" / Ruled("header.magic", Const(MAGIC, Int32ub)),
        "version"
        / Ruled("header.version", OneOf(Int32ub, frozenset({VERSION_1, VERSION_2, VERSION_3}))),
        "total_length" / If(this.version == VERSION_2, Int64ub),
    ),
)


def transcript(header: Any) -> dict[str, Any]:
    """The entry of a file header in a transcript."""
    record = {"record": "header", "offset": 0, "version": header.version}
    if header.total_length is not None:
        record["total_length"] = header.total_length
    return record
