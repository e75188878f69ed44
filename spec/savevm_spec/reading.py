"""What a reader knows at a point of the stream and the bytes before it."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .combinators import Body
    from .vmdesc import Description


class Finding(NamedTuple):
    """A broken rule that does not end reading; the fields are those of ``GrammarError``."""

    rule: str
    offset: int
    section: str | None


@lru_cache(1024)
def filled(fill: int, size: int) -> bytes:
    """A page of ``size`` times the byte ``fill``; all such pages are one object."""
    return bytes([fill]) * size


@dataclass(slots=True)
class Ram:
    """Guest memory: blocks by name with their used length in bytes, and what the pages hold.

    ``contents`` maps the address of a page in its block to its bytes; a page of zeros is absent.
    ``page_size`` is None until something states or shows it.
    """

    blocks: dict[str, int] = field(default_factory=dict)
    contents: dict[str, dict[int, bytes]] = field(default_factory=dict)
    current: str | None = None
    page_size: int | None = None

    def place(self, block: str, address: int, page: bytes) -> None:
        """Keep what the page at ``address`` holds now."""
        pages = self.contents.setdefault(block, {})
        if page.count(0) == len(page):
            pages.pop(address, None)
        else:
            pages[address] = page

    def digest(self, block: str) -> str:
        """SHA-256 over be64 address and bytes of every page that is not zero, by address."""
        sha = hashlib.sha256()
        for address, page in sorted(self.contents.get(block, {}).items()):
            sha.update(address.to_bytes(8))
            sha.update(page)
        return sha.hexdigest()


@dataclass(slots=True)
class Reading:
    """State that later bytes depend on, and what has been read so far.

    ``configured`` tells whether there is a configuration, and ``target_page_size`` the page size in
    bytes that it states.  ``footers`` is None until the first section body has ended.
    ``sections`` has the identity of the latest START or FULL by section id, ``uses`` counts the
    described sections by idstr and instance id, and ``bodies`` has the body of a device by the id
    of its entry in the description, or of its layout.  ``fields`` counts the fields of devices.
    ``done`` pairs every complete record with the function that gives its transcript.
    """

    description: "Description | None" = None
    configured: bool = False
    target_page_size: int | None = None
    section: str | None = None
    footers: bool | None = None
    sections: dict[int, Any] = field(default_factory=dict)
    uses: Counter[tuple[str, int]] = field(default_factory=Counter)
    bodies: dict[int, "Body"] = field(default_factory=dict)
    fields: int = 0
    ram: Ram = field(default_factory=Ram)
    findings: list[Finding] = field(default_factory=list)
    done: list[tuple[Callable[[Any], dict[str, Any]], Any]] = field(default_factory=list)

    def body(self, layout: Any, make: Callable[[Any], "Body"]) -> "Body":
        """The body that ``make`` makes of a layout; once, as layouts are large."""
        if id(layout) not in self.bodies:
            self.bodies[id(layout)] = make(layout)
        return self.bodies[id(layout)]

    def report(self, rule: str, offset: int) -> None:
        """Note that ``rule`` is broken at ``offset``; reading goes on."""
        self.findings.append(Finding(rule, offset, self.section))


def reading(context: Any) -> Reading:
    """The state of a parse, from any context in it; a parse that was given none starts afresh."""
    state: Reading = context._params.setdefault("reading", Reading())
    return state


def enter(idstr: str, context: Any) -> None:
    """Parsed hook of an idstr: what follows belongs to that section."""
    reading(context).section = idstr


def keep(transcript: Callable[[Any], dict[str, Any]]) -> Callable[[Any, Any], None]:
    """Parsed hook of a record: it is complete, and so is the section that it belongs to."""

    def hook(record: Any, context: Any) -> None:
        state = reading(context)
        state.done.append((transcript, record))
        state.section = None

    return hook
