"""Streams and their parts as bytes, all of which the grammar reads without an error."""

from typing import Any

import construct as c
from hypothesis import assume
from hypothesis import strategies as st

from savevm_spec.command import Command
from savevm_spec.configuration import Configuration
from savevm_spec.constants import COMMAND, RAM_IDSTR, RAM_VERSION
from savevm_spec.dialects import DIALECTS
from savevm_spec.ram.body import RAM
from savevm_spec.section import LIVE_BODIES
from savevm_spec.stream import Grammar, Record, _is_last, parse

# What these register is used by all.
from . import choices as choices
from . import ram as ram
from .derive import Drawer, built, values

__all__ = [
    "commands",
    "configurations",
    "live_bodies",
    "ram_bodies",
    "ram_words",
    "sections",
    "streams",
]


@st.composite
def streams(draw: Drawer, dialect: str | None = None) -> bytes:
    """Whole streams of a dialect of ``savevm_spec.dialects``; None: of any.

    What they report, such as trailing data or a section id that is used again, may be in them.
    """
    name = dialect or draw(st.sampled_from([*reversed(DIALECTS)]))
    data: bytes = draw(built(Grammar, name))
    if _can_be_ambiguous(name):
        assume(parse(data).error is None)
    return data


def _can_be_ambiguous(dialect: str) -> bool:
    """Whether readers tell from what is behind a body where it ended."""
    known = DIALECTS[dialect]
    return known.version == 3 and not known.configuration and not known.vmdescription


def sections(dialect: str = "v3-configuration") -> st.SearchStrategy[bytes]:
    """Sections and commands up to the EOF mark, to be put behind a header and a configuration.

    ``dialect`` is one of version 3; sections of "v3-configuration" have footers.  Pages are of the
    size that they show, which no configuration states.
    """
    return built(c.RepeatUntil(_is_last, Record), dialect)


def configurations() -> st.SearchStrategy[bytes]:
    """Configurations from the byte 07 on."""
    return built(Configuration, "v3-configuration")


def commands() -> st.SearchStrategy[bytes]:
    """Commands from the byte 08 on."""
    return built(Command).map(lambda data: bytes([COMMAND]) + data)


def ram_bodies(version: int = RAM_VERSION) -> st.SearchStrategy[bytes]:
    """Bodies of the section "ram" of a version, 1 to 4, of streams that state no page size."""
    return live_bodies(RAM_IDSTR, version)


def ram_words(version: int = RAM_VERSION) -> st.SearchStrategy[list[Any]]:
    """The words of bodies of version 3 or 4, to the last, as the grammar builds them.

    An int stands for itself; ``Page`` and ``ZeroPages`` are those of ``savevm_spec.ram.pages``; what
    has ``blocks`` is a list of blocks.
    """
    return values(RAM[version].grammar, _dialect(version))


def live_bodies(idstr: str, version: int) -> st.SearchStrategy[bytes]:
    """Bodies of a live section, a key of ``savevm_spec.section.LIVE_BODIES``; else ``KeyError``."""
    dialect = _dialect(version) if idstr == RAM_IDSTR else None
    return built(LIVE_BODIES[idstr, version].grammar, dialect)


def _dialect(ram_version: int) -> str:
    return next(name for name, d in DIALECTS.items() if d.ram_version == ram_version)
