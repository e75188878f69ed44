/*
 * Increments the first byte of every page of a window of RAM, over and over, and prints a letter
 * after each sweep: A to Z, and A again.  Whenever it is looked at, all these bytes are equal, or
 * those up to some page are one ahead of the others.
 *
 * The kernel's command line (-append) has numbers:
 *   start=  end=   the window, physical addresses   (0x80100000 to 0x80900000)
 *   rate=          bytes of pages per second, 0: as many as can be      (20000000)
 */
#include "board.h"

enum { PAGE = 4096 };

int main(uint64_t hart, const uint8_t *tree)
{
    const char *line = command_line(tree);
    volatile uint8_t *start = (uint8_t *)number(line, "start=", 0x80100000);
    volatile uint8_t *end = (uint8_t *)number(line, "end=", 0x80900000);
    uint64_t rate = number(line, "rate=", 20000000);
    uint64_t ticks = rate ? PAGE * 10000000ul / rate : 0;
    uint64_t last = mtime();

    (void)hart;
    for (char letter = 'A';; letter = letter == 'Z' ? 'A' : letter + 1) {
        for (volatile uint8_t *page = start; page < end; page += PAGE) {
            ++*page;
            if (ticks) {
                /* Time that has jumped, either way, ends the wait as well. */
                while (mtime() - last < ticks)
                    ;
                last += ticks;
                if (mtime() - last > 10000000)
                    last = mtime();
            }
        }
        put(letter);
    }
}
