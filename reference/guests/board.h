/* What the guests use of the board. */
#include <stdint.h>

extern volatile uint64_t tohost, fromhost;

/* HTIF's request of a device (0: system calls, 1: console) is taken once tohost is 0 again. */
static inline void htif(uint64_t device, uint64_t command, uint64_t payload)
{
    while (tohost)
        ;
    fromhost = 0;
    tohost = device << 56 | command << 48 | payload;
}

static inline void put(char c)
{
    htif(1, 1, (unsigned char)c);
}

static inline void puts(const char *s)
{
    while (*s)
        put(*s++);
}

_Noreturn void power_off(int code);

/* Ticks of 100 ns. */
static inline uint64_t mtime(void)
{
    return *(volatile uint64_t *)0x200bff8;
}

/* The device tree's bootargs, or "". */
const char *command_line(const uint8_t *tree);

/* The number, decimal or 0x…, behind a name on a command line. */
uint64_t number(const char *line, const char *name, uint64_t otherwise);
