# Only says where HTIF is when the running software has no symbols for it: QEMU 5.2 has none
# otherwise, later ones want to be told by any firmware or kernel that is an ELF file.
        .globl _start, tohost, fromhost
        .set fromhost, 0x1000000
        .set tohost, 0x1000008
        .type tohost, @object
        .type fromhost, @object
        .size tohost, 8
        .size fromhost, 8
        .section .text.start, "ax"
_start: wfi
        j       _start
