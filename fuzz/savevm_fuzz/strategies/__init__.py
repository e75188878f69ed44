"""Hypothesis strategies for streams and what they are made of: valid ones, by the grammar.

``values(construct)`` gives what any construct of ``savevm_spec`` builds, ``built(construct)`` its
bytes; what is added to a schema is in both without more.  The others are these by name.  All
integers in bytes are big-endian; sizes are in bytes.

    @given(streams())
    def test_reads(data: bytes) -> None:
        assert read(data).ok
"""

from .derive import built, simplest, values
from .faults import ERRNOS, Fault, FaultPlan, Operation, fault_plans
from .states import WRITTEN, expressible, inexpressible_states, states
from .streams import (
    commands,
    configurations,
    live_bodies,
    ram_bodies,
    ram_words,
    sections,
    streams,
)
from .vmstate import DeviceState, descriptions, devices, documents, dumps

__all__ = [
    "ERRNOS",
    "WRITTEN",
    "DeviceState",
    "Fault",
    "FaultPlan",
    "Operation",
    "built",
    "commands",
    "configurations",
    "descriptions",
    "devices",
    "documents",
    "dumps",
    "expressible",
    "fault_plans",
    "inexpressible_states",
    "live_bodies",
    "ram_bodies",
    "ram_words",
    "sections",
    "simplest",
    "states",
    "streams",
    "values",
]
