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
        """A page of RAM block ``name`` (``used_length`` bytes) comes for the first time.

        Again if pages of another size follow; ``page_size`` is that of the target, in RAM version 1
        4096 and in version 2 1024.
        """

    def page_data(self, block: str, address: i64, data: bytes, start: i64, end: i64) -> None:
        """A piece of a PAGE record: it belongs at byte ``address`` of the block.

        A page comes in one piece or, where a chunk of input ended inside it, in several.
        """

    def fill(self, block: str, address: i64, count: i64, byte: i64) -> None:
        """``count`` pages from byte ``address`` of the block on have all bytes equal to ``byte``."""

    def record(self, idstr: str, instance_id: int, length: i64) -> None:
        """Bytes of a version 1 or 2 record that nothing decodes begin: ``length`` of ``body_data``.

        They are its body or, behind a body that was decoded, the rest of the record.
        """

    def body_data(self, data: bytes, start: i64, end: i64) -> None:
        """A piece of what ``record`` announced."""

    def disk_data(
        self, device: str, sector: i64, at: i64, data: bytes, start: i64, end: i64
    ) -> None:
        """A piece of a device block of 1 MiB at ``sector`` (of 512 bytes), from its byte ``at`` on."""

    def disk_zero(self, device: str, sector: i64) -> None:
        """A device block of 1 MiB at ``sector`` is all zero."""
