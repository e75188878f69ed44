"""Every number that appears on the wire, once.  All integers of the stream are big-endian."""

from typing import Final

# File header
MAGIC: Final = 0x5145564D  # "QEVM"
VERSION_1: Final = 1  # QEMU 0.6.0 to 0.8.2
VERSION_2: Final = 2  # QEMU 0.9.0 to 0.9.1
VERSION_3: Final = 3  # since svn r5434 (QEMU 0.10)

# Record types of version 3
EOF: Final = 0x00
SECTION_START: Final = 0x01
SECTION_PART: Final = 0x02
SECTION_END: Final = 0x03
SECTION_FULL: Final = 0x04
SUBSECTION: Final = 0x05  # only inside vmstate bodies and the configuration
VMDESCRIPTION: Final = 0x06  # only right after EOF
CONFIGURATION: Final = 0x07  # only at offset 8
COMMAND: Final = 0x08
SECTION_FOOTER: Final = 0x7E

SECTION_NAMES: Final = {
    SECTION_START: "section-start",
    SECTION_PART: "section-part",
    SECTION_END: "section-end",
    SECTION_FULL: "section-full",
}

# Configuration
CONFIGURATION_OFFSET: Final = 8
CONFIGURATION_SUBSECTION_VERSION: Final = 1
TARGET_PAGE_BITS: Final = "configuration/target-page-bits"  # since 2.8
CAPABILITIES: Final = "configuration/capabilities"  # since 4.0
UUID: Final = "configuration/uuid"  # since 4.2
TARGET_PAGE_BITS_MIN: Final = 8
TARGET_PAGE_BITS_MAX: Final = 16
UUID_SIZE: Final = 16

CAPABILITY_NAMES: Final = frozenset(
    {
        "xbzrle",
        "rdma-pin-all",
        "auto-converge",
        "zero-blocks",
        "compress",
        "events",
        "postcopy-ram",
        "x-colo",
        "release-ram",
        "block",
        "return-path",
        "pause-before-switchover",
        "multifd",
        "dirty-bitmaps",
        "postcopy-blocktime",
        "late-block-activate",
        "x-ignore-shared",
        "validate-uuid",
        "background-snapshot",
        "zero-copy-send",
        "postcopy-preempt",
        "switchover-ack",
        "dirty-limit",
        "mapped-ram",
    }
)
# These add fields to the RAM block list, so a reader that does not know them loses its place.
CAPABILITIES_THAT_CHANGE_RAM: Final = frozenset({"x-ignore-shared", "mapped-ram"})

# Commands
CMD_OPEN_RETURN_PATH: Final = 1
CMD_PING: Final = 2
CMD_POSTCOPY_ADVISE: Final = 3
CMD_POSTCOPY_LISTEN: Final = 4
CMD_POSTCOPY_RUN: Final = 5
CMD_POSTCOPY_RAM_DISCARD: Final = 6
CMD_PACKAGED: Final = 7
CMD_ENABLE_COLO: Final = 8  # since 3.1
CMD_POSTCOPY_RESUME: Final = 9  # since 3.0
CMD_RECV_BITMAP: Final = 10  # since 3.0
CMD_SWITCHOVER_START: Final = 11  # since 10.0

COMMAND_NAMES: Final = {
    CMD_OPEN_RETURN_PATH: "open-return-path",
    CMD_PING: "ping",
    CMD_POSTCOPY_ADVISE: "postcopy-advise",
    CMD_POSTCOPY_LISTEN: "postcopy-listen",
    CMD_POSTCOPY_RUN: "postcopy-run",
    CMD_POSTCOPY_RAM_DISCARD: "postcopy-ram-discard",
    CMD_PACKAGED: "packaged",
    CMD_ENABLE_COLO: "enable-colo",
    CMD_POSTCOPY_RESUME: "postcopy-resume",
    CMD_RECV_BITMAP: "recv-bitmap",
    CMD_SWITCHOVER_START: "switchover-start",
}
# Allowed payload lengths in bytes; a command that is not listed has a variable length.
COMMAND_LENGTHS: Final = {
    CMD_OPEN_RETURN_PATH: (0,),
    CMD_PING: (4,),
    CMD_POSTCOPY_ADVISE: (0, 16),
    CMD_POSTCOPY_LISTEN: (0,),
    CMD_POSTCOPY_RUN: (0,),
    CMD_PACKAGED: (4,),
    CMD_ENABLE_COLO: (0,),
    CMD_POSTCOPY_RESUME: (0,),
    CMD_SWITCHOVER_START: (0,),
}
RAM_DISCARD_VERSION: Final = 0
RAM_DISCARD_LENGTH_MIN: Final = 20
RAM_DISCARD_RANGE_SIZE: Final = 16

# The "ram" section, version 4: be64 words of address | flags
RAM_IDSTR: Final = "ram"
RAM_VERSION: Final = 4  # since 0.13
RAM_FULL: Final = 0x01  # loader of r5437 only; never sent
RAM_ZERO: Final = 0x02
RAM_MEM_SIZE: Final = 0x04
RAM_PAGE: Final = 0x08
RAM_EOS: Final = 0x10
RAM_CONTINUE: Final = 0x20  # since 0.13
RAM_XBZRLE: Final = 0x40  # since 1.2
RAM_HOOK: Final = 0x80  # since 1.6
RAM_COMPRESS_PAGE: Final = 0x100  # 2.4 to 9.0
RAM_MULTIFD_FLUSH: Final = 0x200  # since 8.1
RAM_FLAGS_KNOWN: Final = 0x3FF
# Smallest page of any target (AVR): address bits never reach below this.
RAM_PAGE_SIZE_MIN: Final = 256
RAM_PAGE_SIZE_MAX: Final = 65536
RAM_PAGE_SIZE_DEFAULT: Final = 4096
# Page sizes in the order in which they are tried when nothing in the stream states one.
RAM_PAGE_SIZES: Final = (4096, 8192, 1024, 2048, 16384, 65536, 256, 512, 32768)

# "spapr/htab", version 1
HTAB_IDSTR: Final = "spapr/htab"
HTAB_VERSION: Final = 1
HTAB_ENTRY_SIZE: Final = 16
HTAB_NONE: Final = 0xFFFFFFFF

# "s390-storage_attributes", version 0: be64 words of address | flags
STORAGE_ATTRIBUTES_IDSTR: Final = "s390-storage_attributes"
STORAGE_ATTRIBUTES_VERSION: Final = 0
STORAGE_ATTRIBUTES_FLAG_MASK: Final = 0xFFF
STORAGE_ATTRIBUTES_EOS: Final = 1
STORAGE_ATTRIBUTES_MORE: Final = 2
STORAGE_ATTRIBUTES_ERROR: Final = 4
STORAGE_ATTRIBUTES_DONE: Final = 8

# Highest version_id of each section whose body frames itself.
LIVE_VERSIONS: Final = {
    RAM_IDSTR: RAM_VERSION,
    HTAB_IDSTR: HTAB_VERSION,
    STORAGE_ATTRIBUTES_IDSTR: STORAGE_ATTRIBUTES_VERSION,
}

# vmstate markers
POINTER_NULL: Final = 0x30
POINTER_PRESENT: Final = 0x31  # since 11.0
LIST_ELEMENT: Final = 0x01
LIST_END: Final = 0x00

# Limits of a reader (rules limit.*), in bytes or elements
LIMIT_MACHINE_NAME: Final = 1024
LIMIT_CAPABILITIES: Final = 256
LIMIT_RAM_BLOCKS: Final = 65536
LIMIT_VMDESC: Final = 64 << 20
LIMIT_VMDESC_VALUES: Final = 1 << 20
LIMIT_STORAGE_ATTRIBUTES: Final = 16 << 20
LIMIT_VMDESC_DEPTH: Final = 128
LIMIT_VMSTATE_FIELDS: Final = 1 << 22
LIMIT_DESCRIPTION_WINDOW: Final = 32 << 20
LIMIT_DESCRIPTION_CANDIDATES: Final = 16
LIMIT_UNDESCRIBED: Final = 32 << 20
LIMIT_PACKAGED: Final = 64 << 20
