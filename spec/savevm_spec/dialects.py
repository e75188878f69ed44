"""The dialects of the stream, as data: which releases write them and how their bytes differ."""

from typing import Final, NamedTuple


class Dialect(NamedTuple):
    """A way of writing the stream.  Releases are QEMU releases; ``until`` None: still written."""

    name: str
    since: str
    until: str | None
    told_by: str


DIALECTS: Final = {
    d.name: d
    for d in (
        Dialect("v1", "0.6.0", "0.8.2", "version 1"),
        Dialect("v2", "0.9.0", "0.9.1", "version 2"),
        Dialect("v3-2008", "0.10", "0.12", "version 3 without any of what follows"),
        Dialect("v3-ram4", "0.13", "2.2", 'the section "ram" has version 4'),
        Dialect("v3-vmdesc", "2.3", None, "a VMDESCRIPTION behind the EOF mark"),
        Dialect("v3-configuration", "2.4", None, "a configuration behind the file header"),
    )
}


def dialect(version: int, *, configuration: bool, vmdescription: bool, ram_version: int) -> str:
    """Name of the dialect of a stream with these parts (``ram_version`` 0: no such section).

    ``version`` 0, of a stream without a file header, has the dialect "unknown".
    """
    if version == 0:
        return "unknown"
    if version < 3:
        return f"v{version}"
    if configuration:
        return "v3-configuration"
    if vmdescription:
        return "v3-vmdesc"
    return "v3-ram4" if ram_version == 4 else "v3-2008"
