"""Where the bulk of a stream goes: page contents and record bodies, without becoming events."""

from mypy_extensions import i64, mypyc_attr

__all__ = ["Sink"]


@mypyc_attr(allow_interpreted_subclasses=True)
class Sink:
    """Receives contents in stream order; this one drops them.

    ``data[start:end]`` is valid as long as the receiver keeps it; nothing is copied before.  The
    reader interrupts nothing: what is raised here reaches the caller of ``feed``.
    """

    def block(self, name: str, used_length: int, page_size: int) -> None:
        """A page of RAM block ``name`` (``used_length`` bytes) comes for the first time."""

    def page_data(self, block: str, address: i64, data: bytes, start: i64, end: i64) -> None:
        """A piece of a PAGE record: it belongs at byte ``address`` of the block.

        A page comes in one piece or, where a chunk of input ended inside it, in several.
        """

    def fill(self, block: str, address: i64, count: i64, byte: i64) -> None:
        """``count`` pages from byte ``address`` of the block on have all bytes equal to ``byte``."""

    def record(self, idstr: str, instance_id: int, length: i64) -> None:
        """The body of a version 1 or 2 record begins; ``length`` bytes of ``body_data`` follow."""

    def body_data(self, data: bytes, start: i64, end: i64) -> None:
        """A piece of the body of a version 1 or 2 record."""
