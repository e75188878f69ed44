/*
 * Sieves, sorts, multiplies matrices, hashes and computes checksums, rounds= times (10); prints a
 * number that depends on all of it, the same wherever it runs, and the ticks of mtime it took.
 */
#include "board.h"

enum { SIEVE = 1 << 15, ITEMS = 1 << 11, SIDE = 24, BYTES = 1 << 13, BUCKETS = 1 << 10 };

static uint8_t composite[SIEVE], text[BYTES];
static uint32_t items[ITEMS], table[256];
static int64_t left[SIDE][SIDE], right[SIDE][SIDE], product[SIDE][SIDE];
static struct node {
    struct node *next;
    uint32_t key, count;
} nodes[ITEMS], *buckets[BUCKETS];

static uint32_t state = 1;

static uint32_t random32(void)
{
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
}

static uint32_t sieve(void)
{
    uint32_t primes = 0;

    for (int i = 0; i < SIEVE; i++)
        composite[i] = 0;
    for (int i = 2; i < SIEVE; i++) {
        if (composite[i])
            continue;
        primes++;
        for (int j = i + i; j < SIEVE; j += i)
            composite[j] = 1;
    }
    return primes;
}

static void quicksort(uint32_t *first, uint32_t *last)
{
    while (first < last) {
        uint32_t pivot = first[(last - first) / 2], *i = first, *j = last;
        while (i <= j) {
            while (*i < pivot)
                i++;
            while (*j > pivot)
                j--;
            if (i <= j) {
                uint32_t swap = *i;
                *i++ = *j;
                *j-- = swap;
            }
        }
        quicksort(first, j);
        first = i;
    }
}

static uint32_t sort(void)
{
    uint32_t sum = 0;

    for (int i = 0; i < ITEMS; i++)
        items[i] = random32();
    quicksort(items, items + ITEMS - 1);
    for (int i = 0; i < ITEMS; i++)
        sum = sum * 31 + items[i];
    return sum;
}

static uint32_t multiply(void)
{
    int64_t sum = 0;

    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++) {
            left[i][j] = random32() & 0xffff;
            right[i][j] = (int32_t)random32();
        }
    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++) {
            int64_t cell = 0;
            for (int k = 0; k < SIDE; k++)
                cell += left[i][k] * right[k][j];
            product[i][j] = cell / (j + 1) + cell % (i + 3);
            sum += product[i][j];
        }
    return (uint32_t)(sum ^ sum >> 32);
}

static uint32_t checksum(void)
{
    uint32_t crc = ~0u;

    if (!table[1])
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int bit = 0; bit < 8; bit++)
                c = c & 1 ? c >> 1 ^ 0xedb88320u : c >> 1;
            table[i] = c;
        }
    for (int i = 0; i < BYTES; i++)
        text[i] = random32() >> 24;
    for (int i = 0; i < BYTES; i++)
        crc = table[(crc ^ text[i]) & 255] ^ crc >> 8;
    return ~crc;
}

static uint32_t hash(void)
{
    uint32_t used = 0, most = 0;

    for (int i = 0; i < BUCKETS; i++)
        buckets[i] = 0;
    for (int i = 0; i < 2 * ITEMS; i++) {
        uint32_t key = random32() % ITEMS;
        struct node **at = &buckets[key * 2654435761u >> 22];
        while (*at && (*at)->key != key)
            at = &(*at)->next;
        if (!*at) {
            *at = &nodes[used++];
            **at = (struct node){0, key, 0};
        }
        if (++(*at)->count > most)
            most = (*at)->count;
    }
    return used << 8 | most;
}

static void put_number(uint64_t value)
{
    if (value >= 10)
        put_number(value / 10);
    put('0' + value % 10);
}

int main(uint64_t hart, const uint8_t *tree)
{
    uint64_t rounds = number(command_line(tree), "rounds=", 10), begin = mtime();
    uint32_t result = 0;

    (void)hart;
    while (rounds--) {
        result = result * 16777619 ^ sieve();
        result = result * 16777619 ^ sort();
        result = result * 16777619 ^ multiply();
        result = result * 16777619 ^ checksum();
        result = result * 16777619 ^ hash();
    }
    put_number(result);
    put(' ');
    put_number(mtime() - begin);
    put('\n');
    return 0;
}
