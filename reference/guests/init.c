/*
 * A first and only process for Linux: once a second it increments a number in each of many pages,
 * having seen that they are all the same, and tells the kernel's log "tick N".
 */
#include <stdint.h>

enum { OPENAT = 56, WRITE = 64, NANOSLEEP = 101, REBOOT = 142, PAGE = 4096, PAGES = 1024 };
enum { AT_FDCWD = -100, WRITE_ONLY = 1, POWER_OFF = 0x4321fedc };

static volatile uint64_t memory[PAGES][PAGE / 8];

static long system_call(long number, long a, long b, long c, long d)
{
    register long a7 __asm__("a7") = number;
    register long a0 __asm__("a0") = a;
    register long a1 __asm__("a1") = b;
    register long a2 __asm__("a2") = c;
    register long a3 __asm__("a3") = d;

    __asm__ volatile("ecall" : "+r"(a0) : "r"(a7), "r"(a1), "r"(a2), "r"(a3) : "memory");
    return a0;
}

static void say(int log, const char *what, uint64_t number)
{
    char line[64], digits[24];
    int length = 0, count = 0;

    while (*what)
        line[length++] = *what++;
    do
        digits[count++] = '0' + number % 10;
    while (number /= 10);
    while (count)
        line[length++] = digits[--count];
    line[length++] = '\n';
    system_call(WRITE, log, (long)line, length, 0);
}

void _start(void)
{
    int log = system_call(OPENAT, AT_FDCWD, (long)"/dev/kmsg", WRITE_ONLY, 0);
    const long second[2] = {1, 0};

    for (uint64_t tick = 0;; tick++) {
        for (int i = 0; i < PAGES; i++) {
            if (memory[i][i % (PAGE / 8)] != tick) {
                say(log, "memory differs in page ", i);
                system_call(REBOOT, 0xfee1dead, 672274793, POWER_OFF, 0);
            }
            memory[i][i % (PAGE / 8)] = tick + 1;
        }
        say(log, "tick ", tick);
        system_call(NANOSLEEP, (long)second, 0, 0, 0);
    }
}
