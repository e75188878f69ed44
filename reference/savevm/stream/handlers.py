"""Who else has a say while a stream is read: the ones that it is loaded into."""

from typing import Any

from mypy_extensions import i64, mypyc_attr

from savevm.stream.events import Configuration, RamBlocks, Section

__all__ = ["Handlers", "LiveBody"]


@mypyc_attr(allow_interpreted_subclasses=True)
class LiveBody:
    """A section's own body format.

    ``done``: the body has ended.  Otherwise ``need`` bytes are wanted from where ``read`` stopped.
    """

    done: bool = False
    need: i64 = 1

    def read(self, data: bytes, start: i64, base: i64, final: bool) -> i64:
        """Read from ``data[start:]``, which lies at stream offset ``base + start``.

        Returns where in ``data`` it stopped.  ``final``: nothing comes after ``data``.  Raises
        ``StreamError``.
        """
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class Handlers:
    """Asked by a reader on its way; this one leaves everything to it."""

    def begin(self, section: Section) -> dict[str, Any] | LiveBody | None:
        """What reads the body of ``section``, whose identification is all that was read so far.

        That is a layout, a live body or, for None, what the reader knows itself.  A layout with a
        "name" is an entry of a VMDESCRIPTION; one without is a schema as ``savevm_spec.devices``
        has them.  Raises ``StreamError`` to refuse the section.
        """
        return None

    def configuration(self, event: Configuration) -> None:
        """The stream's configuration; raises ``StreamError`` to refuse it."""

    def ram_blocks(self, event: RamBlocks) -> None:
        """A block list, before any page of its blocks; raises ``StreamError`` to refuse it."""
