# Hart 0 calls main(0, device tree), and powers off with what it returns; the others call
# secondary(hart) and sleep.  An exception powers off with the exit code 125.
        .section .text.start, "ax"
        .globl _start
_start:
        la      t0, exception
        csrw    mtvec, t0
        la      sp, stack_top
        slli    t0, a0, 10
        sub     sp, sp, t0
        bnez    a0, 1f
        call    main
        call    power_off
1:      call    secondary
        .weak   secondary
secondary:
        wfi
        j       secondary
        .balign 4
exception:
        li      a0, 125
        call    power_off

        .section .htif, "aw", @nobits
        .globl  tohost, fromhost
        .type   tohost, @object
        .type   fromhost, @object
        .size   tohost, 8               # QEMU asks for it
        .size   fromhost, 8
        .balign 8
tohost: .skip   8
fromhost:
        .skip   8
