"""Targets: what the vectors are run against.

A target is named ``reference`` or ``spec``, or ``module:attribute`` for anybody else's: the
attribute is an object with `Adapter`'s methods, or a callable without arguments that gives one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, Final, Protocol, cast


class Adapter(Protocol):
    """A reader and writer of streams, in this process."""

    def transcribe(self, data: bytes) -> dict[str, Any]:
        """The transcript of ``data``; a bad input shows in ``error``, not in an exception."""

    def rebuild(self, data: bytes) -> bytes:
        """``data`` read and written again; equal bytes when ``data`` is accepted."""


@dataclass(frozen=True, slots=True)
class Functions:
    """An adapter made of two functions."""

    transcribe: Callable[[bytes], dict[str, Any]]
    rebuild: Callable[[bytes], bytes]


def reference() -> Adapter:
    """The implementation, ``savevm``."""
    module = import_module("savevm.transcript")
    return Functions(module.transcribe, module.rebuild)


def spec() -> Adapter:
    """The grammar, ``savevm_spec``."""
    module = import_module("savevm_spec.stream")
    # It takes its time, and the same stream is transcribed and rebuilt in turn.
    parse = lru_cache(maxsize=1)(module.parse)

    def transcribe(data: bytes) -> dict[str, Any]:
        return cast(dict[str, Any], module.transcript(parse(data)))

    def rebuild(data: bytes) -> bytes:
        return cast(bytes, module.build(parse(data)))

    return Functions(transcribe, rebuild)


OURS: Final[dict[str, Callable[[], Adapter]]] = {"reference": reference, "spec": spec}


def load(target: str) -> Adapter:
    """The adapter that a target names.

    Raises:
        ValueError: ``target`` is no name of ours and not ``module:attribute``.
        ImportError, AttributeError: there is no such module or attribute.
    """
    if target in OURS:
        return OURS[target]()
    module, colon, attribute = target.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"{target!r} is neither {' nor '.join(OURS)} nor module:attribute")
    found = getattr(import_module(module), attribute)
    made = found() if isinstance(found, type) or not hasattr(found, "transcribe") else found
    return cast(Adapter, made)
