/*
 * Holds instructions against known results, group by group, prints PASS or FAIL with what differs,
 * and powers off with the number of groups that failed.
 */
#include "board.h"

static const char *group;
static int failed_groups, failed_here, checks;

static void put_hex(uint64_t value)
{
    for (int shift = 60; shift >= 0; shift -= 4)
        put("0123456789abcdef"[value >> shift & 15]);
}

static void check(uint64_t got, uint64_t expected)
{
    checks++;
    if (got == expected)
        return;
    failed_here++;
    puts(group);
    puts(" check ");
    put_hex(checks);
    puts(": ");
    put_hex(got);
    puts(", not ");
    put_hex(expected);
    put('\n');
}

static void begin(const char *name)
{
    group = name;
    failed_here = checks = 0;
}

static void end(void)
{
    puts(group);
    puts(failed_here ? " FAIL\n" : " PASS\n");
    failed_groups += failed_here != 0;
}

#define ASM(code, a, b)                                                                            \
    ({                                                                                             \
        uint64_t result;                                                                           \
        __asm__ volatile(code                                                                      \
                         : "=&r"(result)                                                           \
                         : "r"((uint64_t)(a)), "r"((uint64_t)(b))                                  \
                         : "memory", "t0", "t1");                                                  \
        result;                                                                                    \
    })
#define OP(name, a, b) ASM(name " %0, %1, %2", a, b)
#define IMMEDIATE(name, a, immediate) ASM(name " %0, %1, " #immediate, a, 0)

#define MIN64 0x8000000000000000
#define MAX64 0x7fffffffffffffff
#define ONES 0xffffffffffffffff

static void integer(void)
{
    begin("integer");
    check(OP("add", MAX64, 1), MIN64);
    check(OP("sub", 0, 1), ONES);
    check(OP("addw", 0x7fffffff, 1), 0xffffffff80000000);
    check(OP("subw", 0x1234567880000000, 1), 0x7fffffff);
    check(OP("sll", 1, 127), MIN64);
    check(OP("srl", MIN64, 63), 1);
    check(OP("sra", MIN64, 63), ONES);
    check(OP("sllw", 1, 31), 0xffffffff80000000);
    check(OP("srlw", 0xffffffff80000000, 31), 1);
    check(OP("sraw", 0x80000000, 63), ONES);
    check(OP("slt", MIN64, MAX64), 1);
    check(OP("sltu", MIN64, MAX64), 0);
    check(OP("xor", 0xff00ff00ff00ff00, 0x0ff00ff00ff00ff0), 0xf0f0f0f0f0f0f0f0);
    check(OP("or", 0xff00, MIN64), 0x800000000000ff00);
    check(OP("and", 0xff00ff00, 0xfffff000), 0xff00f000);
    check(IMMEDIATE("addi", 0, -2048), 0xfffffffffffff800);
    check(IMMEDIATE("addiw", 0x7fffffff, 1), 0xffffffff80000000);
    check(IMMEDIATE("sltiu", 5, -1), 1);
    check(IMMEDIATE("slti", 5, -1), 0);
    check(IMMEDIATE("xori", 0x5555, -1), 0xffffffffffffaaaa);
    check(IMMEDIATE("slli", 3, 62), 0xc000000000000000);
    check(IMMEDIATE("srai", MIN64, 1), 0xc000000000000000);
    check(IMMEDIATE("srliw", ONES, 4), 0x0fffffff);
    check(ASM("lui %0, 0x80000", 0, 0), 0xffffffff80000000);
    check(ASM("auipc %0, 0\n auipc t0, 0\n sub %0, t0, %0", 0, 0), 4);
    check(ASM("li %0, 0\n 1: addi %0, %0, 1\n bltu %0, %1, 1b", 1000, 0), 1000);
    check(ASM("li %0, 1\n bge %1, %2, 1f\n li %0, 0\n 1:", 1, -1), 1);
    check(ASM("li %0, 1\n bgeu %1, %2, 1f\n li %0, 0\n 1:", 1, -1), 0);
    end();
}

static void memory(void)
{
    static volatile uint64_t place[3];

    begin("memory");
    place[0] = 0x8182838485868788;
    place[1] = 0x0102030405060708;
    check(ASM("lb %0, 7(%1)", place, 0), 0xffffffffffffff81);
    check(ASM("lbu %0, 7(%1)", place, 0), 0x81);
    check(ASM("lh %0, 2(%1)", place, 0), 0xffffffffffff8586);
    check(ASM("lhu %0, 2(%1)", place, 0), 0x8586);
    check(ASM("lw %0, 4(%1)", place, 0), 0xffffffff81828384);
    check(ASM("lwu %0, 4(%1)", place, 0), 0x81828384);
    check(ASM("ld %0, -8(%1)", place + 2, 0), 0x0102030405060708);
    check(ASM("sb %2, 1(%1)\n ld %0, 0(%1)", place, 0x1ff), 0x818283848586ff88);
    check(ASM("sh %2, 6(%1)\n ld %0, 0(%1)", place, 0x12345), 0x234583848586ff88);
    check(ASM("sw %2, 8(%1)\n ld %0, 8(%1)", place, 0x1deadbeef), 0x01020304deadbeef);
    check(ASM("ld %0, 0(%1)", (uintptr_t)place + 5, 0), 0x04deadbeef234583);
    check(ASM("sd %2, 0(%1)\n ld %0, 1(%1)", (uintptr_t)place + 3, MIN64), 0xde80000000000000);
    end();
}

static void multiply(void)
{
    begin("multiply");
    check(OP("mul", 0x123456789abcdef0, 0xfedcba9876543210), 0x236d88fe5618cf00);
    check(OP("mulh", MIN64, MIN64), 0x4000000000000000);
    check(OP("mulh", ONES, 2), ONES);
    check(OP("mulhu", ONES, ONES), 0xfffffffffffffffe);
    check(OP("mulhsu", ONES, ONES), ONES);
    check(OP("mulhsu", MIN64, ONES), MIN64);
    check(OP("mulw", 0x7fffffff, 0x7fffffff), 1);
    check(OP("mulw", 0x10001, 0x8000), 0xffffffff80008000);
    check(OP("div", -7, 2), -3);
    check(OP("rem", -7, 2), -1);
    check(OP("rem", 7, -2), 1);
    check(OP("div", 1, 0), ONES);
    check(OP("rem", -5, 0), -5);
    check(OP("div", MIN64, -1), MIN64);
    check(OP("rem", MIN64, -1), 0);
    check(OP("divu", ONES, 10), 0x1999999999999999);
    check(OP("remu", ONES, 10), 5);
    check(OP("divu", 5, MIN64), 0);
    check(OP("divu", MIN64, 0), ONES);
    check(OP("remu", MIN64, 0), MIN64);
    check(OP("divw", 0x80000000, -1), 0xffffffff80000000);
    check(OP("remw", 0x80000000, -1), 0);
    check(OP("divuw", 0xffffffff80000000, 1), 0xffffffff80000000);
    check(OP("remuw", -1, 16), 15);
    check(OP("divw", -100, 7), -14);
    end();
}

static void atomic(void)
{
    static volatile uint64_t place[2];
    uint64_t *at = (uint64_t *)place;

#define AMO(name, before, operand, after)                                                          \
    place[0] = before;                                                                             \
    check(ASM(name " %0, %2, (%1)", at, operand), before);                                         \
    check(place[0], after)
#define AMO_WORD(name, before, operand, after)                                                     \
    place[0] = 0xaaaaaaaa00000000 | (before);                                                      \
    check(ASM(name " %0, %2, (%1)", at, operand), (int32_t)(before));                              \
    check(place[0], 0xaaaaaaaa00000000 | (after))

    begin("atomic");
    AMO("amoadd.d", MAX64, 1, MIN64);
    AMO("amoswap.d.aqrl", 1, 2, 2);
    AMO("amoxor.d", 0xff, 0x0f, 0xf0);
    AMO("amoand.d", 0xff, 0x1f0, 0xf0);
    AMO("amoor.d", 0xf0, 0x10f, 0x1ff);
    AMO("amomin.d", 1, ONES, ONES);
    AMO("amomax.d", 1, ONES, 1);
    AMO("amominu.d", 1, ONES, 1);
    AMO("amomaxu.d", 1, ONES, ONES);
    AMO_WORD("amoadd.w", 0xffffffff, 2, 1);
    AMO_WORD("amoswap.w", 0x80000000, 7, 7);
    AMO_WORD("amomin.w", 0x80000000, 7, 0x80000000);
    AMO_WORD("amominu.w", 0x80000000, 7, 7);
    AMO_WORD("amomax.w", 0x80000000, 7, 7);
    AMO_WORD("amomaxu.w", 0x80000000, 7, 0x80000000);
    place[0] = 41;
    check(ASM("1: lr.d t0, (%1)\n add t0, t0, %2\n sc.d %0, t0, (%1)\n bnez %0, 1b", at, 1), 0);
    check(place[0], 42);
    check(ASM("1: lr.w t0, (%1)\n sc.w t1, %2, (%1)\n bnez t1, 1b\n sc.w %0, t0, (%1)", at, 9), 1);
    check(place[0], 9);
    end();
}

static void compressed(void)
{
    static volatile uint64_t place[4];

    begin("compressed");
    check(ASM("c.li a5, -32\n c.addi a5, 31\n c.mv %0, a5", 0, 0), ONES);
    check(ASM("c.mv a5, %1\n c.add a5, %2\n c.mv %0, a5", 40, 2), 42);
    check(ASM("mv a4, %1\n mv a5, %2\n c.sub a5, a4\n c.mv %0, a5", 2, 1), ONES);
    check(ASM("mv a4, %1\n mv a5, %2\n c.addw a5, a4\n c.mv %0, a5", 0x7fffffff, 1), 0xffffffff80000000);
    check(ASM("mv a4, %1\n mv a5, %2\n c.subw a5, a4\n c.mv %0, a5", 1, 0x80000000), 0x7fffffff);
    check(ASM("mv a4, %1\n mv a5, %2\n c.xor a5, a4\n c.andi a5, -16\n c.mv %0, a5", 0xff, 0xf), 0xf0);
    check(ASM("mv a4, %1\n mv a5, %2\n c.or a5, a4\n c.and a5, a4\n c.mv %0, a5", 3, 4), 3);
    check(ASM("mv a5, %1\n c.slli a5, 40\n c.srai a5, 63\n c.srli a5, 60\n c.mv %0, a5", 0x800000, 0), 15);
    check(ASM("mv a5, %1\n c.addiw a5, -1\n c.mv %0, a5", 0x80000000, 0), 0x7fffffff);
    check(ASM("c.lui a5, 0xfffe0\n c.mv %0, a5", 0, 0), 0xfffffffffffe0000);
    check(ASM("mv a4, %1\n mv a5, %2\n c.sd a5, 24(a4)\n c.lw a5, 28(a4)\n c.mv %0, a5", place,
              0x8765432112345678), 0xffffffff87654321);
    check(ASM("mv a4, %1\n mv a5, %2\n c.sw a5, 24(a4)\n c.ld a5, 24(a4)\n c.mv %0, a5", place, 7),
          0x8765432100000007);
    check(ASM("c.addi16sp sp, -64\n c.sdsp %1, 8(sp)\n c.ldsp %0, 8(sp)\n c.addi16sp sp, 64", 5, 0), 5);
    check(ASM("c.addi4spn a5, sp, 8\n sub %0, a5, sp", 0, 0), 8);
    check(ASM("c.li a5, 5\n 1: c.addi a5, -1\n c.bnez a5, 1b\n c.beqz a5, 2f\n c.li a5, 1\n"
              "2: c.j 3f\n c.li a5, 2\n 3: c.mv %0, a5", 0, 0), 0);
    check(ASM("la t0, 1f\n c.jalr t0\n c.j 2f\n 1: c.mv %0, ra\n c.jr ra\n 2: la t1, 1b\n"
              "sub %0, t1, %0", 0, 0), 2);
    end();
}

/* Operands and results of these are the bits of singles and doubles. */
#define FP(code, a, b)                                                                             \
    ASM(".option push\n .option arch, +f, +d\n fsflags zero\n" code "\n .option pop", a, b)
#define D2(name, a, b) FP("fmv.d.x ft0, %1\n fmv.d.x ft1, %2\n" name " ft0, ft0, ft1\n fmv.x.d %0, ft0", a, b)
#define S2(name, a, b) FP("fmv.w.x ft0, %1\n fmv.w.x ft1, %2\n" name " ft0, ft0, ft1\n fmv.x.w %0, ft0", a, b)
#define D1(name, a) FP("fmv.d.x ft0, %1\n" name " ft0, ft0\n fmv.x.d %0, ft0", a, 0)
#define TO_INTEGER(name, a) FP("fmv.d.x ft0, %1\n" name "\n", a, 0)
#define FLAGS(before) FP(before "\n frflags %0", 0, 0)

#define ONE 0x3ff0000000000000
#define TWO 0x4000000000000000
#define THREE 0x4008000000000000
#define INF 0x7ff0000000000000
#define NAN 0x7ff8000000000000

enum { INEXACT = 1, UNDERFLOW = 2, OVERFLOW = 4, DIVIDE = 8, INVALID = 16 };

static uint64_t flags(void)
{
    uint64_t value;

    __asm__ volatile("csrr %0, 0x001" : "=r"(value));
    return value;
}

static void floating(void)
{
    begin("floating");
    check(D2("fadd.d", ONE, TWO), THREE);
    check(flags(), 0);
    check(D2("fdiv.d", ONE, THREE), 0x3fd5555555555555);
    check(flags(), INEXACT);
    check(D2("fdiv.d", ONE, 0), INF);
    check(flags(), DIVIDE);
    check(D2("fsub.d", INF, INF), NAN);
    check(flags(), INVALID);
    check(D2("fmul.d", 0x7fefffffffffffff, TWO), INF);
    check(flags(), OVERFLOW | INEXACT);
    check(D2("fmul.d", 0x0010000000000001, 0x3fe0000000000000), 0x0008000000000000);
    check(flags(), UNDERFLOW | INEXACT);
    check(D1("fsqrt.d", TWO), 0x3ff6a09e667f3bcd);
    check(flags(), INEXACT);
    check(D1("fsqrt.d", 0xbff0000000000000), NAN);
    check(flags(), INVALID);
    check(D1("fsqrt.d", MIN64), MIN64);
    check(D2("fmin.d", MIN64, 0), MIN64);
    check(D2("fmax.d", NAN, ONE), ONE);
    check(D2("fsgnjn.d", ONE, ONE), 0xbff0000000000000);
    check(S2("fadd.s", 0x3f800000, 0x33800000), 0x3f800000);
    check(flags(), INEXACT);
    check(FP("fsrmi 3\n fmv.w.x ft0, %1\n fmv.w.x ft1, %2\n fadd.s ft0, ft0, ft1\n fmv.x.w %0, ft0\n fsrmi 0",
             0x3f800000, 0x33800000), 0x3f800001);
    check(FP("fmv.d.x ft0, %1\n fmv.d.x ft1, %2\n fmadd.d ft0, ft0, ft0, ft1\n fmv.x.d %0, ft0",
             0x3ff0000000000001, 0xbff0000000000002), 0x3970000000000000);
    check(FP("fmv.d.x ft0, %1\n fcvt.s.d ft1, ft0\n fmv.x.w %0, ft1", 0x3ff0000010000000, 0), 0x3f800000);
    check(FP("fmv.w.x ft0, %1\n fcvt.d.s ft1, ft0\n fmv.x.d %0, ft1", 0x3f800001, 0), 0x3ff0000020000000);
    check(FP("fmv.w.x ft0, %1\n fmv.x.d %0, ft0", 0x3f800000, 0), 0xffffffff3f800000);
    check(FP("fmv.d.x ft0, %1\n fadd.s ft0, ft0, ft0\n fmv.x.w %0, ft0", 0x3f800000, 0), 0x7fc00000);
    check(TO_INTEGER("fcvt.l.d %0, ft0, rtz", 0xc005555555555555), -2);
    check(flags(), INEXACT);
    check(TO_INTEGER("fcvt.l.d %0, ft0, rdn", 0xc005555555555555), -3);
    check(TO_INTEGER("fcvt.w.d %0, ft0, rne", 0x41f0000000000000), 0x7fffffff);
    check(flags(), INVALID);
    check(TO_INTEGER("fcvt.wu.d %0, ft0, rtz", 0xbff0000000000000), 0);
    check(TO_INTEGER("fcvt.lu.d %0, ft0, rtz", NAN), ONES);
    check(TO_INTEGER("fclass.d %0, ft0", 0x7ff0000000000001), 1 << 8);
    check(TO_INTEGER("feq.d %0, ft0, ft0", NAN), 0);
    check(flags(), 0);
    check(TO_INTEGER("fle.d %0, ft0, ft0", NAN), 0);
    check(flags(), INVALID);
    check(FP("fcvt.d.lu ft0, %1\n fmv.x.d %0, ft0", ONES, 0), 0x43f0000000000000);
    check(flags(), INEXACT);
    check(FP("fcvt.s.w ft0, %1\n fmv.x.w %0, ft0", -16777217, 0), 0xffffffffcb800000);
    end();
}

int main(void)
{
    uint64_t misa;

    integer();
    memory();
    multiply();
    atomic();
    compressed();
    __asm__ volatile("csrr %0, misa" : "=r"(misa));
    if (misa & 1 << 3 && misa & 1 << 5) {
        __asm__ volatile("csrs mstatus, %0" : : "r"(1ul << 13));
        floating();
    } else {
        puts("floating is not there\n");
    }
    puts(failed_groups ? "FAIL\n" : "PASS\n");
    return failed_groups;
}
