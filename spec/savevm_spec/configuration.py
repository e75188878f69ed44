"""The configuration (since 2.4): machine name and up to three kinds of subsections.

``07``, be32 length, machine name; then, for as long as the next byte is ``05``: u8 length, name,
be32 version 1 and the body of the subsection that the name stands for.
Origin: vmstate_configuration.
"""

from collections.abc import Callable
from typing import Any

from construct import (
    Bytes,
    Const,
    Int8ub,
    Int32ub,
    PascalString,
    PrefixedArray,
    Struct,
    Switch,
    Tell,
    this,
)

from .combinators import Counted, Reported, While, Whole, held, next_byte
from .constants import (
    CAPABILITIES,
    CAPABILITIES_THAT_CHANGE_RAM,
    CAPABILITY_NAMES,
    CONFIGURATION,
    CONFIGURATION_SUBSECTION_VERSION,
    LIMIT_CAPABILITIES,
    LIMIT_MACHINE_NAME,
    SUBSECTION,
    TARGET_PAGE_BITS,
    TARGET_PAGE_BITS_MAX,
    TARGET_PAGE_BITS_MIN,
    UUID,
    UUID_SIZE,
)
from .reading import reading


def _set_page_size(bits: int, context: Any) -> None:
    state = reading(context)
    state.target_page_size = state.ram.page_size = 1 << bits


def _note(_: int, context: Any) -> None:
    reading(context).configured = True


TargetPageBits = (
    held(
        "configuration.target-page-bits",
        Int32ub,
        lambda bits, _: TARGET_PAGE_BITS_MIN <= bits <= TARGET_PAGE_BITS_MAX,
    )
    * _set_page_size
)

Capability = held(
    "configuration.capability.unsupported",
    held("configuration.capability.unknown", Counted, lambda name, _: name in CAPABILITY_NAMES),
    lambda name, _: name not in CAPABILITIES_THAT_CHANGE_RAM,
)

Capabilities = PrefixedArray(
    held("limit.capabilities", Int32ub, lambda count, _: count <= LIMIT_CAPABILITIES), Capability
)

BODIES = {
    TARGET_PAGE_BITS: TargetPageBits,
    CAPABILITIES: Capabilities,
    UUID: Bytes(UUID_SIZE),
}


def _is_new(name: str, subsection: Any) -> bool:
    seen = subsection._.setdefault("seen", set())
    return name not in seen and not seen.add(name)


Subsection = Struct(
    "mark" / Const(SUBSECTION, Int8ub),
    "name"
    / held(
        "configuration.subsection.repeated",
        held("configuration.subsection.unknown", Counted, lambda name, _: name in BODIES),
        _is_new,
    ),
    "version"
    / held(
        "configuration.subsection.version",
        Int32ub,
        lambda version, _: version == CONFIGURATION_SUBSECTION_VERSION,
    ),
    "body" / Switch(this.name, BODIES),
)

MachineNameLength = Reported(
    "configuration.machine.empty",
    held("limit.machine-name", Int32ub, lambda length, _: length <= LIMIT_MACHINE_NAME),
    lambda length: length > 0,
)

Configuration = Whole(
    "configuration.truncated",
    Struct(
        "offset" / Tell,
        "type" / Const(CONFIGURATION, Int8ub) * _note,
        "machine" / PascalString(MachineNameLength, "latin-1"),
        "subsections" / While(lambda stream, _: next_byte(stream) == SUBSECTION, Subsection),
    ),
)


def _subsection(subsection: Any) -> dict[str, Any]:
    bodies: dict[str, Callable[[Any], dict[str, Any]]] = {
        TARGET_PAGE_BITS: lambda bits: {"target_page_bits": bits},
        CAPABILITIES: lambda names: {"capabilities": list(names)},
        UUID: lambda uuid: {"uuid": uuid.hex()},
    }
    told = bodies[subsection.name](subsection.body)
    return {"name": subsection.name, "version": subsection.version, **told}


def transcript(configuration: Any) -> dict[str, Any]:
    """The entry of a configuration in a transcript; the uuid in hex."""
    return {
        "record": "configuration",
        "offset": configuration.offset,
        "machine": configuration.machine,
        "subsections": [_subsection(s) for s in configuration.subsections],
    }
