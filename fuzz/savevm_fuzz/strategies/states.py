"""States of machines for writers: JSON as ``state.schema.json`` of the vectors has it."""

from typing import Any, Final

from hypothesis import strategies as st

from savevm_spec.constants import (
    LIVE_VERSIONS,
    RAM_PAGE_SIZE_DEFAULT,
    RAM_PAGE_SIZES,
    RAM_UNNAMED_BLOCK,
    RAM_V2_BLOCK_SIZE,
    VERSION_2,
)
from savevm_spec.dialects import DIALECTS, Dialect

from .derive import SHORT, Drawer
from .vmstate import descriptions, devices

__all__ = ["WRITTEN", "expressible", "inexpressible_states", "states"]

WRITTEN: Final = tuple(name for name, d in reversed(DIALECTS.items()) if d.version >= VERSION_2)
"""The dialects that can be written, the newest first."""

# Of a block, so that streams stay small; and of one of so many blocks, as many pages are not always
# written like few.  The largest page is of 64 KiB: their addresses may take 25 bits.
PAGES_MAX: Final = 8
_PAGES_MANY: Final = 512
_SELDOM: Final = 16

# Bytes; of the last page, whatever its size.
_MISSING: Final = st.integers(1, min(RAM_PAGE_SIZES) - 1)
_NAMES: Final = st.text(st.characters(codec="latin-1"), min_size=1, max_size=SHORT)
_IDSTRS: Final = _NAMES.filter(lambda name: name not in LIVE_VERSIONS)
_MACHINES: Final = st.text(st.characters(codec="ascii", min_codepoint=0x21), min_size=1)


@st.composite
def states(draw: Drawer, dialect: str | None = None) -> dict[str, Any]:
    """The state of a machine that a writer can write in a dialect of `WRITTEN`; None: in any."""
    name = draw(st.sampled_from(WRITTEN)) if dialect is None else dialect
    form = DIALECTS[name]
    size = (
        draw(st.sampled_from(sorted(RAM_PAGE_SIZES)))
        if form.vmdescription
        else RAM_PAGE_SIZE_DEFAULT
    )
    most = 3 if form.ram_version == 4 else 1
    blocks = st.lists(_blocks(form, size), max_size=most, unique_by=lambda block: block["name"])
    # Where nothing describes devices, the first one has all that follows for its body.
    described = form.vmdescription or form.version == VERSION_2
    sections = st.lists(
        _devices(form),
        max_size=3 if described else 0,
        unique_by=lambda device: (device["idstr"], device["instance_id"]),
    )
    return {
        "dialect": name,
        "machine": draw(_MACHINES),
        "page_size": size,
        "ram": draw(blocks),
        "devices": draw(sections),
    }


@st.composite
def inexpressible_states(draw: Drawer) -> dict[str, Any]:
    """A state that no stream has a form for, which a writer must refuse; see `expressible`."""
    state = draw(states())
    ways = ["dialect"]
    if state["ram"]:
        ways += ["length"] if DIALECTS[state["dialect"]].ram_version == 4 else ["length", "names"]
    match draw(st.sampled_from(ways)):
        case "dialect":
            state["dialect"] = draw(st.sampled_from(sorted({*DIALECTS} - {*WRITTEN})))
        case "length":
            draw(st.sampled_from(state["ram"]))["used_length"] -= draw(_MISSING)
        case "names":
            state["ram"].append(state["ram"][0] | {"name": draw(_NAMES)})
    return state


def expressible(state: dict[str, Any]) -> bool:
    """Whether there is a stream of a state: its dialect is written, and has a form for the RAM."""
    form, blocks = DIALECTS[state["dialect"]], state["ram"]
    unit = RAM_V2_BLOCK_SIZE if form.ram_version < 3 else state["page_size"]
    return (
        form.version >= VERSION_2
        and (form.ram_version == 4 or len(blocks) <= 1)
        and all(block["used_length"] % unit == 0 for block in blocks)
    )


@st.composite
def _blocks(draw: Drawer, form: Dialect, size: int) -> dict[str, Any]:
    """A block of whole pages of ``size`` bytes, some of them with contents."""
    many = draw(st.integers(1, _SELDOM)) == _SELDOM
    pages = draw(st.integers(1, _PAGES_MANY if many else PAGES_MAX))
    runs = []
    at = 0
    while at < pages and draw(st.booleans()):
        at = draw(st.integers(at, pages - 1))
        count = draw(st.integers(1, pages - at))
        runs.append({"address": at * size, "count": count, **draw(_contents(size))})
        at += count
    name = draw(_NAMES) if form.ram_version == 4 else RAM_UNNAMED_BLOCK
    return {"name": name, "used_length": pages * size, "pages": runs}


@st.composite
def _contents(draw: Drawer, size: int) -> dict[str, Any]:
    """What is in each of the pages of a run: one byte everywhere, or a few bytes somewhere."""
    if draw(st.booleans()):
        piece = draw(st.binary(min_size=1, max_size=8))
        before = draw(st.integers(0, size - len(piece)))
        return {"hex": (bytes(before) + piece).ljust(size, b"\0").hex()}
    return {"byte": draw(st.integers(0, 255)), "size": size}


@st.composite
def _devices(draw: Drawer, form: Dialect) -> dict[str, Any]:
    """A device with its body or, where the stream can describe it, with its fields."""
    head = {"idstr": draw(_IDSTRS), "instance_id": draw(st.integers(0, 0xFFFFFFFF))}
    if not form.vmdescription or draw(st.booleans()):
        version = draw(st.integers(0, 0x7FFFFFFF))
        return {**head, "version_id": version, "body": draw(st.binary(max_size=SHORT)).hex()}
    device = draw(devices(descriptions(depth=1, plain=True)))
    layout = {k: v for k, v in device.description.items() if k not in ("name", "instance_id")}
    return {**head, "version_id": layout["version"], "layout": layout, "state": device.state}
