/* An adapter that reads streams itself: configuration, commands, sections with or without footers,
 * RAM of version 4.  C99 and its library only.  Limitation: it is no JSON parser.  It searches the
 * request for words and keys, and takes no path with a quote, a backslash or a letter beyond ASCII.
 * Sections other than RAM are not known to it, and so have all that is left of the stream. */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HELLO "{\"protocol\":1,\"implementation\":{\"name\":\"adapter.c\",\"version\":\"1\"}," \
    "\"roles\":[\"reader\"],\"features\":[\"configuration\",\"commands\",\"footers\",\"ram-4\"]," \
    "\"says\":[\"class\",\"offset\",\"records\"]}"
#define SUBSECTIONS "configuration/target-page-bits configuration/capabilities configuration/uuid"
#define CAPABILITIES "x-ignore-shared mapped-ram xbzrle rdma-pin-all auto-converge zero-blocks " \
    "compress events postcopy-ram x-colo release-ram block return-path pause-before-switchover " \
    "multifd dirty-bitmaps postcopy-blocktime late-block-activate validate-uuid dirty-limit " \
    "background-snapshot zero-copy-send postcopy-preempt switchover-ack"
#define say(...) ((void)(saying && printf(__VA_ARGS__)))
#define require(fine, why, where) ((fine) ? (void)0 : reject(why, where))

typedef unsigned long long u64;
enum { START = 1, FULL = 4, SUBSECTION, CONFIGURATION = 7, COMMAND, FOOTER = 0x7e };
enum { ZERO = 2, MEM_SIZE = 4, PAGE = 8, EOS = 16, CONTINUE = 32, XBZRLE = 64, HOOK = 128,
       COMPRESS_PAGE = 256, MULTIFD_FLUSH = 512, PAGE_SIZE = 4096, MANY = 65536 };
static const char *types[] = {"eof", "start", "part", "end", "full"};
static char request[MANY], id[MANY], path[MANY];
static unsigned char *data; /* the stream; names are known by the place of their length in it */
static u64 size, at, n_blocks, blocks[MANY], current, n_sections, sections[MANY] /* ids */, offset;
static int footers /* -1: not yet known */, saying /* in a second reading of what was accepted */;
static const char *class; /* of the error, which is at offset */
static jmp_buf end;

static void reject(const char *c, u64 o) { class = c, offset = o, longjmp(end, 1); }
static u64 skip(u64 n) { require(n <= size - at, "truncated", size); return (at += n) - n; }
static u64 decode(u64 from, int n) { return n ? decode(from, n - 1) << 8 | data[from + n - 1] : 0; }
static u64 number(int bytes) { return decode(skip(bytes), bytes); }
static u64 name(void) { u64 from = at; return skip(number(1)), from; }
static u64 behind(u64 name) { return name + 1 + data[name]; }

static int one_of(u64 name, const char *words) { /* which of them it is, or -1 */
    for (int i = 0, n; (n = strcspn(words, " ")); i++, words += n + (words[n] == ' '))
        if (data[name] == n && !memcmp(data + name + 1, words, n)) return i;
    return -1;
}
static u64 listed(u64 name) { /* the block of that name, or 0 */
    for (u64 i = n_blocks; i--;)
        if (!memcmp(data + blocks[i], data + name, data[name] + 1)) return blocks[i];
    return 0;
}
static void say_name(u64 from, u64 length) {
    for (say(length ? " " : " %%"); length--; from++)
        say(data[from] < 0x21 || data[from] > 0x7e || data[from] == '%' ? "%%%02X"
            : strchr("\"\\", data[from]) ? "\\%c" : "%c", data[from]);
}
static void configuration(void) {
    u64 length = number(4), from = skip(length), seen = 0, count;
    say(",\"8 configuration"), say_name(from, length), say("\"");
    while (at < size && data[at] == SUBSECTION) {
        int kind = (skip(1), one_of(from = name(), SUBSECTIONS)), which;
        require(kind >= 0, "unknown", from);
        require(!(seen & 1 << kind), "malformed", from), seen |= 1 << kind;
        require(number(4) == 1, "malformed", at - 4);
        if (kind == 0) require(number(4) - 8 <= 8, "malformed", at - 4);
        if (kind == 1) for (count = number(4); count > 0; count--) /* two are refused */
            require((which = one_of(from = name(), CAPABILITIES)) > 1,
                    which < 0 ? "malformed" : "unsupported", from);
        if (kind == 2) skip(16);
    }
}
static void command(void) {
    static const u64 least[12] = {1, 0, 4, [6] = 20, 4, [10] = 1};
    static const u64 most[12] = {0, 0, 4, 16, [6] = MANY, 4, [10] = MANY};
    u64 which = number(2), length = number(2), payload, zero;
    require(which - 1 < 11, "malformed", at - 4);
    require(length >= least[which] && length <= most[which], "range", at - 2);
    require(which != 3 || length % 16 == 0, "range", at - 2);
    say(",\"%llu command %llu %llu\"", at - 5, which, length);
    payload = skip(length), zero = behind(payload + 1);
    if (which == 6) require(!data[payload] && zero + 1 < at && !data[zero]
                            && (at - zero) % 16 == 1, "malformed", payload);
    if (which == 7) require((length = decode(payload, 4)), "truncated", payload), skip(length);
    if (which == 10) require(behind(payload) == at, "malformed", payload);
}
static void ram(void) {
    for (u64 word, length, known; (word = number(8)) != EOS;) {
        u64 from = at - 8, flags = word % PAGE_SIZE, kind = flags & ~CONTINUE;
        if (word % 256 == MEM_SIZE)
            for (word -= MEM_SIZE; word > 0; word -= length, n_blocks++) {
                require(n_blocks < MANY, "limit", at), known = listed(blocks[n_blocks] = name());
                require((length = number(8)) <= word, "malformed", at - 8);
                require(!known || length == decode(behind(known), 8), "malformed", at - 8);
            }
        else if (word != HOOK && word != MULTIFD_FLUSH) {
            require(kind != XBZRLE && kind != COMPRESS_PAGE, "unsupported", from);
            require(kind == ZERO || kind == PAGE, "malformed", from);
            if (!(flags & CONTINUE)) require((current = listed(name())), "malformed", from + 8);
            require(current && word - flags < decode(behind(current), 8), "malformed", from);
            skip(kind == PAGE ? PAGE_SIZE : 1);
        }
    }
}
static int section(u64 type) { /* whether anything can follow it */
    u64 from = at, number_of = number(4), i = n_sections, length, instance, version;
    say(",\"%llu %s %llu", from - 1, types[type], number_of);
    if (type == START || type == FULL) {
        require((length = number(1)), "malformed", from + 4), skip(length);
        instance = number(4), version = number(4);
        say_name(from + 5, length), say(" %llu %llu\"", instance, version);
        require(one_of(from + 4, "ram") || version <= 4, "malformed", at - 4);
        if (one_of(from + 4, "ram") || version < 4)
            return require(at < size && !data[size - 1], "truncated", size - (at < size)), 0;
        require(n_sections < MANY, "limit", from), sections[n_sections++] = number_of;
    } else {
        while (i && sections[i - 1] != number_of) i--;
        require(i, "malformed", from), say("\"");
    }
    ram();
    if (footers < 0 && at < size) footers = data[at] == FOOTER;
    if (footers < 1) return 1;
    require(number(1) == FOOTER, "malformed", at - 1);
    require(number(4) == number_of, "malformed", at - 4);
    return say(",\"%llu footer %llu\"", at - 5, number_of), 1;
}
static void stream(void) {
    at = n_blocks = n_sections = current = 0, footers = -1;
    require(number(4) == 0x5145564d, "malformed", 0);
    require(number(4) == 3, "unsupported", 4), say("\"0 header 3\"");
    if (at < size && data[at] == CONFIGURATION) skip(1), configuration();
    for (u64 type; (type = number(1));) {
        require(type <= FULL || type == COMMAND, "malformed", at - 1);
        if (type == COMMAND) command();
        else if (!section(type)) return;
    }
    say(",\"%llu eof\"", at - 1);
}
static void value(const char *key, char *to) {
    const char *from = strstr(request, key);
    if (!from || sscanf(from + strlen(key), "%*[: ]\"%65535[^\"]", to) != 1) *to = 0;
}
static int load(void) {
    FILE *file = fopen(path, "rb");
    size = 0;
    for (u64 got = 1; file && got; size += got = fread(data + size, 1, MANY, file))
        if (!(data = realloc(data, size + MANY))) exit(2);
    return file && !fclose(file);
}
int main(void) {
    while (fgets(request, MANY, stdin) && !strstr(request, "\"bye\"")) {
        value("\"id\"", id), value("\"stream\"", path), saying = 0;
        if (strstr(request, "\"hello\"")) printf(HELLO);
        else if (printf("{\"id\":\"%s\",\"outcome\":", id), !strstr(request, "\"reader\""))
            printf("\"skip\",\"why\":\"it only reads\"}");
        else if (!load()) printf("\"error\",\"why\":\"it cannot open the stream\"}");
        else if (setjmp(end)) printf("\"reject\",\"class\":\"%s\",\"offset\":%llu}", class, offset);
        else stream(), saying = 1, printf("\"accept\",\"records\":["), stream(), printf("]}");
        puts(""), fflush(stdout);
    }
}
