"""What is saved: devices, RAM and other live sections, and the registry that holds them."""

from typing import Any, Final

from savevm.channel import Channel
from savevm.errors import stream_error
from savevm.ram import RamBlock, RamLoader, RamSaver, save_version_2
from savevm.stream.events import ConfigurationSubsection, RamBlocks, Section
from savevm.stream.handlers import LiveBody
from savevm_spec.constants import (
    RAM_IDSTR,
    RAM_PAGE_SIZE_DEFAULT,
    RAM_UNNAMED_BLOCK,
    RAM_V2_BLOCK_SIZE,
    RAM_VERSION,
    VERSION_2,
    VERSION_3,
)
from savevm_spec.dialects import DIALECTS

__all__ = [
    "CannotExpressError",
    "Device",
    "Format",
    "Live",
    "Ram",
    "RefusedError",
    "Registry",
    "Savable",
]


class CannotExpressError(ValueError):
    """What is to be saved has no form in the dialect."""


class RefusedError(ValueError):
    """A state that breaks a ``rule`` of its own."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(detail)
        self.rule: Final = rule


class Format:
    """How a stream is written: the ``dialect``, and what its configuration says.

    Raises ``CannotExpressError`` for a dialect that is only read.
    """

    def __init__(
        self,
        dialect: str = "v3-configuration",
        machine: str = "",
        subsections: tuple[ConfigurationSubsection, ...] = (),
    ) -> None:
        known = DIALECTS.get(dialect)
        if known is None or known.version < VERSION_2:
            raise CannotExpressError(f"streams of dialect {dialect!r} are not written")
        self.dialect: Final = known
        self.version: Final = known.version
        self.machine: Final = machine
        self.subsections: Final = subsections


class Savable:
    """What has a section: ``idstr`` and ``instance_id``, and the versions that it loads.

    ``instance_id`` None: the next that is free for the idstr.  Sections are written in the order of
    ``priority``, highest first, then of registration.
    """

    def __init__(
        self,
        idstr: str,
        instance_id: int | None = None,
        *,
        version_id: int = 1,
        minimum_version_id: int | None = None,
        priority: int = 0,
    ) -> None:
        self.idstr: Final = idstr
        self.instance_id = instance_id
        self.version_id = version_id
        self.minimum_version_id = version_id if minimum_version_id is None else minimum_version_id
        self.priority: Final = priority
        self.section_id = -1

    def loads(self, version_id: int) -> bool:
        """Whether it loads a version between the oldest and the newest."""
        return True


class Device(Savable):
    """A device: saved whole, while the machine is stopped."""

    def layout(self, version_id: int) -> dict[str, Any] | None:
        """The layout of the body, as an entry of a VMDESCRIPTION (vmsd_name, version, fields).

        Or ``{"size": bytes}`` for a body that is the device's own business; None, which only
        loading allows, for one that follows a schema of ``savevm_spec.devices``.
        """
        raise NotImplementedError

    def save(self) -> Any:
        """The state, as ``vmstate`` has it, of the newest version; bytes where only a size is known."""
        raise NotImplementedError

    def load(self, state: Any, version_id: int) -> None:
        """Take over a state; raises ``ValueError``, perhaps a ``RefusedError``, to refuse it."""
        raise NotImplementedError

    def needed(self) -> bool:
        """Whether there is anything to save."""
        return True


class Live(Savable):
    """What is saved while the machine runs, in several sections."""

    def begin(self, out: Channel, form: Format, live: bool) -> None:
        """Write the body of START.  ``live``: the machine runs on until ``complete``."""

    def iterate(self, out: Channel, budget: int) -> None:
        """Write a body of PART of about ``budget`` bytes."""
        raise NotImplementedError

    def complete(self, out: Channel) -> None:
        """Write the body of END: all that is left; the machine is stopped."""
        raise NotImplementedError

    def cancel(self) -> None:
        """The save ends here, whether it came to its end or not."""

    @property
    def left(self) -> int:
        """Bytes that are to be sent, as of now."""
        raise NotImplementedError

    def in_parts(self, form: Format) -> bool:
        """Whether it is sent in several sections; else ``begin`` writes all, with the machine stopped."""
        return form.version == VERSION_3

    def written_version(self, form: Format) -> int:
        """The version to write; raises ``CannotExpressError``."""
        if form.version < VERSION_3:
            raise CannotExpressError(
                f"section {self.idstr!r} has no form in version {form.version}"
            )
        return self.version_id

    def body(self, section: Section) -> LiveBody | None:
        """What reads a body; None: the reader does."""
        return None

    def loaded(self) -> None:
        """The last body has been read."""


class Ram(Live):
    """The RAM of a machine, as section "ram"; ``blocks`` in the order in which they are listed.

    ``saver`` is what writes it, while that lasts.

    Raises ``ValueError`` where they differ in the size of their pages, of which a stream has one.
    """

    def __init__(self, blocks: list[RamBlock], priority: int = 100) -> None:
        super().__init__(
            RAM_IDSTR, 0, version_id=RAM_VERSION, minimum_version_id=1, priority=priority
        )
        self.blocks: Final = blocks
        self.page_size: Final = blocks[0].page_size if blocks else RAM_PAGE_SIZE_DEFAULT
        for block in blocks:
            if block.page_size != self.page_size:
                raise ValueError(
                    f"block {block.name!r} has pages of {block.page_size} bytes, others of "
                    f"{self.page_size}"
                )
        self.sink: Final = RamLoader(blocks)
        self.saver: RamSaver | None = None
        self._version = RAM_VERSION

    def in_parts(self, form: Format) -> bool:
        return form.dialect.ram_version >= 3

    def written_version(self, form: Format) -> int:
        version = form.dialect.ram_version
        if version < RAM_VERSION and len(self.blocks) != 1:
            raise CannotExpressError(
                f"RAM version {version} has no block names, and there are {len(self.blocks)} blocks"
            )
        if version < 3:
            size = self.blocks[0].used_length
            if size >= 1 << 32:
                raise CannotExpressError(
                    f"RAM version {version} has 32 bits for the size of RAM, which is {size} bytes"
                )
        unit = RAM_V2_BLOCK_SIZE if version < 3 else self.page_size
        for block in self.blocks:
            if block.used_length % unit:
                raise CannotExpressError(
                    f"RAM version {version} comes in units of {unit} bytes, and block "
                    f"{block.name!r} has {block.used_length} bytes"
                )
        self._version = version
        return version

    def begin(self, out: Channel, form: Format, live: bool) -> None:
        if self._version < 3:
            save_version_2(self.blocks[0], out)
            return
        # A block list ends when all of the RAM has been listed: it has no place for empty ones.
        self.saver = RamSaver([b for b in self.blocks if b.used_length], self._version)
        self.saver.begin(out, live)

    def iterate(self, out: Channel, budget: int) -> None:
        assert self.saver is not None
        self.saver.iterate(out, budget)

    def complete(self, out: Channel) -> None:
        assert self.saver is not None
        self.saver.complete(out)

    def cancel(self) -> None:
        if self.saver is not None:
            self.saver.end()
            self.saver = None

    @property
    def left(self) -> int:
        if self.saver is None:
            return sum(block.used_length for block in self.blocks)
        return self.saver.left

    def check(self, event: RamBlocks) -> None:
        """Refuse blocks that the machine does not have; raises ``StreamError``."""
        sizes = {block.name: block.used_length for block in self.blocks}
        if len(self.blocks) == 1:
            sizes.setdefault(RAM_UNNAMED_BLOCK, self.blocks[0].used_length)
        for name, used in event.blocks:
            if name not in sizes:
                raise stream_error(
                    "ram.block.unknown",
                    event.offset,
                    RAM_IDSTR,
                    f"the machine has no block {name!r}",
                )
            if used != sizes[name]:
                raise stream_error(
                    "ram.block.size",
                    event.offset,
                    RAM_IDSTR,
                    f"block {name!r} of {used:#x} bytes, the machine's has {sizes[name]:#x}",
                )

    def loaded(self) -> None:
        self.sink.mark()


class Registry:
    """What is savable, in the order of registration."""

    def __init__(self) -> None:
        self.entries: list[Savable] = []
        self._by_key: dict[tuple[str, int], Savable] = {}

    def register(self, savable: Savable) -> None:
        """Add ``savable``; raises ``ValueError`` where its idstr and instance id are taken."""
        instances = [e.instance_id or 0 for e in self.entries if e.idstr == savable.idstr]
        if savable.instance_id is None:
            savable.instance_id = max(instances, default=-1) + 1
        key = savable.idstr, savable.instance_id
        if key in self._by_key:
            raise ValueError(f"instance {key[1]} of {key[0]!r} is registered already")
        savable.section_id = len(self.entries)
        self.entries.append(savable)
        self._by_key[key] = savable

    def ordered(self) -> list[Savable]:
        """In the order in which sections are written."""
        return sorted(self.entries, key=lambda entry: -entry.priority)

    def find(self, idstr: str, instance_id: int) -> Savable | None:
        """The entry of a section."""
        return self._by_key.get((idstr, instance_id))

    def has(self, idstr: str) -> bool:
        """Whether any instance is registered."""
        return any(entry.idstr == idstr for entry in self.entries)
