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

# The return path: messages of a be16 type, a be16 length and a payload
RETURN_SHUT: Final = 1
RETURN_PONG: Final = 2

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
# Versions 1 to 3 (until 0.12; read until 1.0) have no block names: all RAM is one block.
RAM_VERSIONS: Final = (1, 2, 3, 4)
RAM_UNNAMED_BLOCK: Final = "ram"
RAM_V1_PAGE_SIZE: Final = 4096
RAM_TAG_NORMAL: Final = 0  # versions 1 and 2
RAM_TAG_FILL: Final = 1  # version 1
# Version 2: one zlib stream in chunks; inflated, a tag before each block.
RAM_CHUNK_MAGIC: Final = 0xFABE
RAM_CHUNK_MAX: Final = 4096
RAM_V2_BLOCK_SIZE: Final = 1024
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

# "block", version 1 (0.12 to 9.0): be64 words of sector << 9 | flags
BLOCK_IDSTR: Final = "block"
BLOCK_VERSION: Final = 1
BLOCK_SECTOR_BITS: Final = 9
BLOCK_DEVICE: Final = 1
BLOCK_EOS: Final = 2
BLOCK_PROGRESS: Final = 4
BLOCK_ZERO: Final = 8  # since 1.6, together with BLOCK_DEVICE
BLOCK_SIZE: Final = 1 << 20

# Highest version_id of each section whose body frames itself.
LIVE_VERSIONS: Final = {
    RAM_IDSTR: RAM_VERSION,
    HTAB_IDSTR: HTAB_VERSION,
    STORAGE_ATTRIBUTES_IDSTR: STORAGE_ATTRIBUTES_VERSION,
    BLOCK_IDSTR: BLOCK_VERSION,
}

# vmstate markers
POINTER_NULL: Final = 0x30
POINTER_PRESENT: Final = 0x31  # since 11.0
LIST_ELEMENT: Final = 0x01
LIST_END: Final = 0x00

# qcow2 images; a number of bits is its own name, everything else in bytes
QCOW2_MAGIC: Final = 0x514649FB  # "QFI" fb
QCOW2_VERSIONS: Final = (2, 3)
QCOW2_HEADER_SIZE_2: Final = 72
QCOW2_HEADER_SIZE_3: Final = 104
QCOW2_HEADER_REFCOUNT_TABLE: Final = 48  # be64 offset, be32 clusters
QCOW2_HEADER_SNAPSHOTS: Final = 60  # be32 number, be64 offset
QCOW2_HEADER_AUTOCLEAR: Final = 88
QCOW2_CLUSTER_BITS: Final = range(9, 22)
QCOW2_EXTENDED_CLUSTER_BITS_MIN: Final = 14
QCOW2_REFCOUNT_ORDER_2: Final = 4
QCOW2_REFCOUNT_ORDER_MAX: Final = 6
QCOW2_DIRTY: Final = 1 << 0  # incompatible features
QCOW2_CORRUPT: Final = 1 << 1
QCOW2_EXTERNAL_DATA: Final = 1 << 2
QCOW2_COMPRESSION_TYPE: Final = 1 << 3
QCOW2_EXTENDED_L2: Final = 1 << 4
QCOW2_INCOMPATIBLE_KNOWN: Final = 0x1F
QCOW2_AUTOCLEAR_KNOWN: Final = 0x3  # bitmaps, raw external data
QCOW2_ZLIB: Final = 0
QCOW2_ZSTD: Final = 1
QCOW2_COPIED: Final = 1 << 63  # entries of L1 and L2 tables
QCOW2_COMPRESSED: Final = 1 << 62
QCOW2_OFFSET: Final = 0x00FF_FFFF_FFFF_FE00
QCOW2_ZERO: Final = 1
QCOW2_SECTOR: Final = 512
QCOW2_SUBCLUSTERS: Final = 32
QCOW2_SNAPSHOT_ALIGNMENT: Final = 8
QCOW2_EXTENSION_END: Final = 0
# QEMU's own
LIMIT_QCOW2_L1: Final = 32 << 20
LIMIT_QCOW2_REFCOUNT_TABLE: Final = 8 << 20
LIMIT_QCOW2_SNAPSHOTS: Final = 65536
LIMIT_QCOW2_SNAPSHOT_TABLE: Final = 64 << 20
LIMIT_QCOW2_SNAPSHOT_EXTRA: Final = 1024

# libvirt's save image; integers in the byte order of the host that wrote it
LIBVIRT_MAGIC: Final = b"LibvirtQemudSave"
LIBVIRT_MAGIC_PARTIAL: Final = b"LibvirtQemudPart"  # until the stream behind it is whole
LIBVIRT_HEADER_SIZE: Final = 92
LIBVIRT_VERSION_1: Final = 1  # no format field: raw
LIBVIRT_VERSION_2: Final = 2
LIBVIRT_FORMATS: Final = ("raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse")
LIBVIRT_PADDING: Final = 64 << 10  # behind domain XML and cookie, so that they can grow

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
# A record of version 1 or 2 that is longer is not decoded by a schema.
LIMIT_SCHEMA_BODY: Final = 1 << 20
LIMIT_PACKAGED: Final = 64 << 20
LIMIT_LIBVIRT_DATA: Final = 16 << 20
LIMIT_DECOMPRESSOR: Final = 128 << 20
