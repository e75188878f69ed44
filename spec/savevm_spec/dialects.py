"""The dialects of the stream, as data: which releases write them and how their bytes differ."""

from typing import Final, NamedTuple


class Dialect(NamedTuple):
    """A way of writing the stream.  Releases are QEMU releases; ``until`` None: still written.

    ``version`` is that of the file header, ``ram_version`` that of the section "ram".
    ``configuration`` stands for the configuration and the footers, which came together.
    """

    name: str
    since: str
    until: str | None
    told_by: str
    version: int
    ram_version: int
    vmdescription: bool = False
    configuration: bool = False


DIALECTS: Final = {
    d.name: d
    for d in (
        Dialect("v1", "0.6.0", "0.8.2", "version 1", 1, 1),
        Dialect("v2", "0.9.0", "0.9.1", "version 2", 2, 2),
        Dialect("v3-2008", "r5434", "r5436", "version 3 without any of what follows", 3, 2),
        Dialect("v3-ram3", "0.10", "0.12", 'the section "ram" has version 3', 3, 3),
        Dialect("v3-ram4", "0.13", "2.2", 'the section "ram" has version 4', 3, 4),
        Dialect("v3-vmdesc", "2.3", None, "a VMDESCRIPTION behind the EOF mark", 3, 4, True),
        Dialect(
            "v3-configuration",
            "2.4",
            None,
            "a configuration behind the file header",
            3,
            4,
            True,
            True,
        ),
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
    return {3: "v3-ram3", 4: "v3-ram4"}.get(ram_version, "v3-2008")
