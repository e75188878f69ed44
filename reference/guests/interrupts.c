/*
 * Hart 0 interrupts the others (harts= on the command line, 1) one after the other by software, and
 * each answers it in the same way; then its timer does, three times.  Prints a digit for each hart,
 * a t for each time and PASS, and powers off.
 */
#include "board.h"

enum { SOFTWARE = 1 << 3, TIMER = 1 << 7, TICKS = 20000 };

static volatile uint32_t *const msip = (uint32_t *)0x2000000;
static volatile uint64_t *const mtimecmp = (uint64_t *)0x2004000;
static volatile int ready[8], timer_interrupts;

static void wait_for_software(uint64_t hart)
{
    uint64_t pending;

    do {
        __asm__ volatile("wfi\n csrr %0, mip" : "=r"(pending));
    } while (!(pending & SOFTWARE));
    msip[hart] = 0;
}

void secondary(uint64_t hart)
{
    __asm__ volatile("csrw mie, %0" : : "r"(SOFTWARE));
    ready[hart] = 1;
    for (;;) {
        wait_for_software(hart);
        put('0' + hart);
        msip[0] = 1;
    }
}

__attribute__((interrupt, aligned(4))) static void on_timer(void)
{
    timer_interrupts++;
    mtimecmp[0] = mtime() + TICKS;
}

int main(uint64_t hart, const uint8_t *tree)
{
    uint64_t harts = number(command_line(tree), "harts=", 1);

    put('0' + hart);
    __asm__ volatile("csrw mie, %0" : : "r"(SOFTWARE));
    for (uint64_t other = 1; other < harts; other++) {
        while (!ready[other])
            ;
        msip[other] = 1;
        wait_for_software(0);
    }
    __asm__ volatile("csrw mtvec, %0\n csrw mie, %1\n csrsi mstatus, 8" : : "r"(on_timer), "r"(TIMER));
    mtimecmp[0] = mtime() + TICKS;
    for (int seen = 0; seen < 3; seen++) {
        while (timer_interrupts == seen)
            __asm__ volatile("wfi");
        put('t');
    }
    puts(" PASS\n");
    return 0;
}
