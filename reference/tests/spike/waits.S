# The guest of waits-*.bin.xz: sets registers, then waits for its timer, prints a letter, and waits again.
# Built with riscv64-unknown-elf-gcc -nostdlib -march=rv64imafd_zicsr -mabi=lp64d, linked at 0x80000000,
# its HTIF registers at 0x80001000; run in QEMU 5.2.0, 7.2.22, 10.0.13 and 11.1.3 as
#   qemu-system-riscv64 -M spike -m 4M -nic none -bios none -kernel waits.elf -nodefaults -accel tcg
# stopped in its sleep, between two interrupts, and sent with QMP's migrate.
.section .text
.globl _start
_start:
  la t0, handler
  csrw mtvec, t0
  # FP
  li t0, 0x2000
  csrs mstatus, t0
  li t0, 0x60
  csrw fcsr, t0          # frm=3
  li t0, 0x123456789abcdef0
  fmv.d.x f5, t0
  # csrs
  li t0, 0x1111; csrw mscratch, t0
  li t0, 0x2222; csrw sscratch, t0
  li t0, 0x3334; csrw sepc, t0
  li t0, 0x4444; csrw stvec, t0
  li t0, 7; csrw mcounteren, t0
  li t0, 5; csrw scounteren, t0
  li t0, 0x222; csrw mideleg, t0
  li t0, 0xb109; csrw medeleg, t0
  li t0, 5; csrw scause, t0
  li t0, 0x5557; csrw stval, t0
  li t0, 0x6669; csrw mtval, t0
  li t0, -1; csrw pmpaddr0, t0
  li t0, 0x1f; csrw pmpcfg0, t0
  li t0, 0x20000000; csrw pmpaddr3, t0
  li t0, 0x8000000000080007; csrw satp, t0
  li t0, 2; csrw mip, t0   # SSIP
  # timer
  li s1, 0x2004000
  li s2, 0x200bff8
  li s3, 1000000          # 0.1 s
  li s4, 'a'
  la s5, tohost
  li s6, 0x0101000000000000
  ld t0, 0(s2)
  add t0, t0, s3
  sd t0, 0(s1)
  li t0, 0x80
  csrs mie, t0
  csrsi mstatus, 8
1: wfi
  j 1b
.align 2
handler:
  csrr t0, mcause
  bgez t0, bad
  ld t0, 0(s2)
  ld t1, 0(s1)
  li t2, '.'
  bltu t0, t1, early
  mv t2, s4
  addi s4, s4, 1
  li t3, 'z'+1
  bne s4, t3, 2f
  li s4, 'a'
2:
  add t1, t1, s3
early:
  sd t1, 0(s1)
  or t2, t2, s6
3: ld t3, 0(s5)
  bnez t3, 3b
  sd t2, 0(s5)
  mret
bad:
  li t2, '!'
  or t2, t2, s6
  sd t2, 0(s5)
4: j 4b
.globl tohost
.globl fromhost
.section .tohost,"aw",@progbits
tohost: .dword 0
fromhost: .dword 0
.size tohost, 8
.size fromhost, 8
.type tohost, @object
.type fromhost, @object
