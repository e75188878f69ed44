"""The emulated machine: the RISC-V board "spike" as QEMU lays it out."""
