#include "board.h"

_Noreturn void power_off(int code)
{
    for (;;)
        htif(0, 0, (uint64_t)code << 1 | 1);
}

enum { BEGIN_NODE = 1, END_NODE, PROPERTY, NOP };

static uint32_t be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3];
}

/* What is behind a prefix in a string, or null. */
static const char *after(const char *s, const char *prefix)
{
    while (*prefix)
        if (*s++ != *prefix++)
            return 0;
    return s;
}

const char *command_line(const uint8_t *tree)
{
    if (be32(tree) != 0xd00dfeed)
        return "";
    const uint8_t *p = tree + be32(tree + 8);
    const char *names = (const char *)tree + be32(tree + 12);
    for (;;) {
        uint32_t token = be32(p);
        p += 4;
        if (token == BEGIN_NODE) {
            while (*p++)
                ;
        } else if (token == PROPERTY) {
            const char *rest = after(names + be32(p + 4), "bootargs");
            if (rest && !*rest && be32(p))
                return (const char *)p + 8;
            p += 8 + be32(p);
        } else if (token != END_NODE && token != NOP) {
            return "";
        }
        p = (const uint8_t *)(((uintptr_t)p + 3) & ~3ul);
    }
}

uint64_t number(const char *line, const char *name, uint64_t otherwise)
{
    while (*line) {
        const char *digits = after(line, name);
        if (digits) {
            const char *hex = after(digits, "0x");
            uint64_t base = hex ? 16 : 10, value = 0;
            for (const char *s = hex ? hex : digits;; s++) {
                uint64_t digit = *s >= 'a' ? *s - 'a' + 10u : *s - '0' + 0u;
                if (digit >= base)
                    return value;
                value = value * base + digit;
            }
        }
        while (*line && *line++ != ' ')
            ;
    }
    return otherwise;
}
