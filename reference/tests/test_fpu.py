"""RISC-V's arithmetic against exact rational numbers that are rounded last, and against the host's."""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from operator import add, mul, sub, truediv
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from savevm.machine.fpu import DOUBLE, SINGLE, Fpu

NX, UF, OF, DZ, NV = (1 << bit for bit in range(5))
RNE, RTZ, RDN, RUP, RMM = MODES = range(5)


class Format(NamedTuple):
    width: int
    precision: int
    largest_exponent: int

    @property
    def smallest_exponent(self) -> int:
        return 1 - self.largest_exponent

    @property
    def sign(self) -> int:
        return 1 << (self.width - 1)

    @property
    def infinity(self) -> int:
        return (2 * self.largest_exponent + 1) << (self.precision - 1)

    @property
    def nan(self) -> int:
        return self.infinity | 1 << (self.precision - 2)


FORMATS = {SINGLE: Format(32, 24, 127), DOUBLE: Format(64, 53, 1023)}
RANGES = [(-(2**31), 2**31 - 1), (0, 2**32 - 1), (-(2**63), 2**63 - 1), (0, 2**64 - 1)]


@dataclass
class Number:
    """The value of a pattern: a Fraction, an infinity, or a NaN."""

    sign: int
    kind: str
    value: Fraction = Fraction(0)
    signaling: bool = False


def number(pattern: int, fmt: int) -> Number:
    form = FORMATS[fmt]
    pattern &= 2 * form.sign - 1
    sign, magnitude = divmod(pattern, form.sign)
    if magnitude > form.infinity:
        return Number(sign, "nan", signaling=magnitude < form.nan)
    if magnitude == form.infinity:
        return Number(sign, "infinity")
    exponent, fraction = divmod(magnitude, 1 << (form.precision - 1))
    if exponent:
        fraction += 1 << (form.precision - 1)
    scale = Fraction(2) ** (max(exponent, 1) - form.largest_exponent - form.precision + 1)
    return Number(sign, "finite", (-1) ** sign * fraction * scale)


def logarithm(value: Fraction) -> int:
    """The largest ``n`` with ``2**n <= abs(value)``."""
    value = abs(value)
    n = value.numerator.bit_length() - value.denominator.bit_length()
    return n if Fraction(2) ** n <= value else n - 1


def choose(below: int, distance: Fraction, rm: int) -> int:
    """``below`` or ``below + 1`` for a number that is by 0 <= ``distance`` < 1 above ``below``."""
    if distance == 0:
        return below
    towards_zero = below if below >= 0 else below + 1
    nearest = below if distance < Fraction(1, 2) else below + 1
    if distance == Fraction(1, 2):
        nearest = below + (below & 1) if rm == RNE else below if below < 0 else below + 1
    return {RNE: nearest, RTZ: towards_zero, RDN: below, RUP: below + 1, RMM: nearest}[rm]


def to_multiple(value: Fraction, unit: Fraction, rm: int) -> Fraction:
    below = math.floor(value / unit)
    return choose(below, value / unit - below, rm) * unit


def rounded(value: Fraction, zero_sign: int, fmt: int, rm: int) -> tuple[int, int]:
    """The pattern and the flags of ``value``; ``zero_sign`` is that of an exact zero."""
    form = FORMATS[fmt]
    if value == 0:
        return zero_sign * form.sign, 0
    sign = form.sign if value < 0 else 0
    quantum = Fraction(2) ** (logarithm(value) - form.precision + 1)
    unbounded = to_multiple(value, quantum, rm)
    if abs(unbounded) >= Fraction(2) ** (form.largest_exponent + 1):
        finite = rm == RTZ or rm == (RDN if value > 0 else RUP)
        return sign | (form.infinity - finite), OF | NX
    smallest = Fraction(2) ** (form.smallest_exponent - form.precision + 1)
    result = to_multiple(value, max(quantum, smallest), rm)
    flags = NX if result != value else 0
    if flags and abs(unbounded) < Fraction(2) ** form.smallest_exponent:
        flags |= UF
    if result == 0:
        return sign, flags
    exponent = max(logarithm(result), form.smallest_exponent)
    units = abs(result) / Fraction(2) ** (exponent - form.precision + 1)
    assert units.denominator == 1
    return sign | ((exponent + form.largest_exponent - 1) << (form.precision - 1)) + int(
        units
    ), flags


def invalid(fmt: int) -> tuple[int, int]:
    return FORMATS[fmt].nan, NV


def quiet(fmt: int, *numbers: Number) -> tuple[int, int]:
    return FORMATS[fmt].nan, NV if any(n.signaling for n in numbers) else 0


def sum_of(a: Number, b: Number, fmt: int, rm: int) -> tuple[int, int]:
    if "nan" in (a.kind, b.kind):
        return quiet(fmt, a, b)
    infinite = [n for n in (a, b) if n.kind == "infinity"]
    if infinite:
        if len({n.sign for n in infinite}) == 2:
            return invalid(fmt)
        return infinite[0].sign * FORMATS[fmt].sign | FORMATS[fmt].infinity, 0
    zero_sign = a.sign if a.sign == b.sign else int(rm == RDN)
    return rounded(a.value + b.value, zero_sign, fmt, rm)


def product_of(a: Number, b: Number) -> Number:
    """Unrounded; "invalid" is a kind of its own."""
    sign = a.sign ^ b.sign
    if "nan" in (a.kind, b.kind):
        return Number(sign, "nan", signaling=a.signaling or b.signaling)
    if "infinity" in (a.kind, b.kind):
        zero = any(n.kind == "finite" and n.value == 0 for n in (a, b))
        return Number(sign, "invalid" if zero else "infinity")
    return Number(sign, "finite", a.value * b.value)


def expected_add(a: int, b: int, fmt: int, rm: int) -> tuple[int, int]:
    return sum_of(number(a, fmt), number(b, fmt), fmt, rm)


def expected_sub(a: int, b: int, fmt: int, rm: int) -> tuple[int, int]:
    return expected_add(a, b ^ FORMATS[fmt].sign, fmt, rm)


def expected_mul(a: int, b: int, fmt: int, rm: int) -> tuple[int, int]:
    product = product_of(number(a, fmt), number(b, fmt))
    if product.kind == "nan":
        return quiet(fmt, product)
    if product.kind == "invalid":
        return invalid(fmt)
    if product.kind == "infinity":
        return product.sign * FORMATS[fmt].sign | FORMATS[fmt].infinity, 0
    return rounded(product.value, product.sign, fmt, rm)


def expected_div(a: int, b: int, fmt: int, rm: int) -> tuple[int, int]:
    x, y = number(a, fmt), number(b, fmt)
    sign = x.sign ^ y.sign
    if "nan" in (x.kind, y.kind):
        return quiet(fmt, x, y)
    infinity = sign * FORMATS[fmt].sign | FORMATS[fmt].infinity
    if x.kind == "infinity":
        return invalid(fmt) if y.kind == "infinity" else (infinity, 0)
    if y.kind == "infinity":
        return sign * FORMATS[fmt].sign, 0
    if y.value == 0:
        return invalid(fmt) if x.value == 0 else (infinity, DZ)
    return rounded(x.value / y.value, sign, fmt, rm)


def expected_sqrt(a: int, fmt: int, rm: int) -> tuple[int, int]:
    x = number(a, fmt)
    if x.kind == "nan":
        return quiet(fmt, x)
    if x.value == 0 and x.kind == "finite":
        return x.sign * FORMATS[fmt].sign, 0
    if x.sign:
        return invalid(fmt)
    if x.kind == "infinity":
        return FORMATS[fmt].infinity, 0
    # Bracket the root 40 bits closer than the format can: rounding cannot tell it from its place there.
    unit = Fraction(2) ** (logarithm(x.value) // 2 - 100)
    low, high = 1 << 99, 1 << 103
    while high - low > 1:
        middle = (low + high) // 2
        if (middle * unit) ** 2 <= x.value:
            low = middle
        else:
            high = middle
    exact = (low * unit) ** 2 == x.value
    return rounded((low if exact else low + Fraction(1, 2)) * unit, 0, fmt, rm)


def expected_fmadd(a: int, b: int, c: int, fmt: int, rm: int) -> tuple[int, int]:
    product, z = product_of(number(a, fmt), number(b, fmt)), number(c, fmt)
    if product.kind == "invalid":
        return invalid(fmt)
    return sum_of(product, z, fmt, rm)


def expected_to_integer(a: int, kind: int, fmt: int, rm: int) -> tuple[int, int]:
    x = number(a, fmt)
    lowest, highest = RANGES[kind]
    if x.kind == "nan":
        n, flags = highest, NV
    elif x.kind == "infinity":
        n, flags = lowest if x.sign else highest, NV
    else:
        n = int(to_multiple(x.value, Fraction(1), rm))
        flags = NX if n != x.value else 0
        if not lowest <= n <= highest:
            n, flags = lowest if n < 0 else highest, NV
    return signed(n, 32 if kind < 2 else 64), flags


def signed(n: int, width: int) -> int:
    n &= (1 << width) - 1
    return n - (1 << width) if n >> (width - 1) else n


def register(pattern: int, fmt: int) -> int:
    """How ``Fpu`` gives and takes a pattern."""
    return signed(pattern, 64) if fmt == DOUBLE else pattern


def outcome(operation: str, *arguments: int) -> tuple[int, int]:
    fpu = Fpu()
    result: int = getattr(fpu, operation)(*arguments)
    return result, fpu.flags


def patterns(fmt: int) -> st.SearchStrategy[int]:
    """Every exponent equally often, and fractions that are near all zeros, all ones or a tie."""
    form = FORMATS[fmt]
    ones = (1 << (form.precision - 1)) - 1
    runs = st.builds(
        lambda high, low: ones >> high & ~((1 << low) - 1),
        st.integers(0, form.precision),
        st.integers(0, form.precision),
    )
    fraction = st.one_of(
        st.integers(0, ones),
        st.integers(0, 3),
        st.integers(ones - 3, ones),
        runs,
        runs.map(lambda n: ones ^ n),
    )
    top = 2 * form.largest_exponent + 1
    exponent = st.one_of(
        st.integers(0, top),
        st.integers(form.largest_exponent - 60, form.largest_exponent + 66),
        st.sampled_from((0, 0, 1, 2, top - 2, top - 1, top)),
    )
    return st.builds(
        lambda sign, e, f: register(sign * form.sign | e << (form.precision - 1) | f, fmt),
        st.integers(0, 1),
        exponent,
        fraction,
    )


def operands(count: int) -> st.SearchStrategy[tuple[int, ...]]:
    """``count`` patterns of one format, often with near exponents, and the format."""

    def of_format(fmt: int) -> st.SearchStrategy[tuple[int, ...]]:
        one = patterns(fmt)
        if count == 1:
            return st.tuples(one, st.just(fmt))
        step = 1 << (FORMATS[fmt].precision - 1)
        limit = FORMATS[fmt].infinity

        def near(first: int, exponent_change: int, change: int, sign: bool) -> int:
            magnitude = first & (FORMATS[fmt].sign - 1)
            changed = min(max(magnitude + exponent_change * step + change, 0), limit)
            return register(changed | (FORMATS[fmt].sign if sign else 0), fmt)

        change = st.one_of(st.just(0), st.integers(-4, 4), st.integers(-step, step))
        pair = st.one_of(
            st.tuples(one, one),
            st.builds(
                lambda a, e, c, s: (a, near(a, e, c, s)),
                one,
                st.integers(-4, 4),
                change,
                st.booleans(),
            ),
        )
        if count == 2:
            return st.tuples(pair, st.just(fmt)).map(lambda p: (*p[0], p[1]))

        def with_addend(factors: tuple[int, int], e: int, c: int, s: bool) -> tuple[int, ...]:
            product = expected_mul(*factors, fmt, RNE)[0]
            return (*factors, near(product, e, c, s), fmt)

        return st.one_of(
            st.builds(lambda p, c: (*p, c, fmt), pair, one),
            st.builds(
                with_addend,
                pair,
                st.one_of(st.integers(-3, 3), st.integers(-130, 130)),
                change,
                st.booleans(),
            ),
        )

    return st.sampled_from((SINGLE, DOUBLE)).flatmap(of_format)


def check(operation: str, expected: tuple[int, int], fmt: int, *arguments: int) -> None:
    pattern, flags = expected
    assert outcome(operation, *arguments) == (register(pattern, fmt), flags)


TWO: dict[str, Callable[[int, int, int, int], tuple[int, int]]] = {
    "add": expected_add,
    "sub": expected_sub,
    "mul": expected_mul,
    "div": expected_div,
}


@pytest.mark.parametrize("operation", TWO)
@settings(max_examples=400, deadline=None)
@given(operands=operands(2), rm=st.sampled_from(MODES))
def test_two_operands(operation: str, operands: tuple[int, ...], rm: int) -> None:
    a, b, fmt = operands
    check(operation, TWO[operation](a, b, fmt, rm), fmt, a, b, fmt, rm)


@settings(max_examples=400, deadline=None)
@given(operands=operands(1), rm=st.sampled_from(MODES))
@example((0x3FEF_FFFF_FFFF_FFFF, DOUBLE), RUP)
@example((1, DOUBLE), RNE)
@example((1, SINGLE), RMM)
def test_square_root(operands: tuple[int, ...], rm: int) -> None:
    a, fmt = operands
    check("sqrt", expected_sqrt(a, fmt, rm), fmt, a, fmt, rm)


@pytest.mark.parametrize("above", [7, 15, 23])
@pytest.mark.parametrize("rm", MODES)
def test_roots_that_are_nearly_ties(above: int, rm: int) -> None:
    # y * y + above is a multiple of 2**55: the root of that is a hair above y, which has a bit more
    # than a double.
    y = 1
    for bit in range(3, 55):
        if (y * y + above) % (1 << (bit + 1)):
            y += 1 << (bit - 1)
    for root in (y % (1 << 54), -y % (1 << 54), (y + (1 << 54)) % (1 << 55), -y % (1 << 55)):
        square = root * root + above
        if root >> 53 == 1 and square % (1 << 55) == 0:
            value = float(square >> 55) * 2.0**55
            assert int(value) == square
            (pattern,) = struct.unpack("<q", struct.pack("<d", value))
            check("sqrt", expected_sqrt(pattern, DOUBLE, rm), DOUBLE, pattern, DOUBLE, rm)
            return
    pytest.fail("no such root")


@settings(max_examples=1000, deadline=None)
@given(operands=operands(3), rm=st.sampled_from(MODES))
# The addend is far below the product, a hair that breaks a tie.
@example((0x3F80_0001, 0x3F80_0000 | 1 << 22, 0x0000_0001, SINGLE), RNE)
# All but the lowest bits of the product are cancelled.
@example((0x3FF0_0000_0000_0001, 0x3FF0_0000_0000_0001, register(0xBFF0 << 48 | 2, 1), DOUBLE), RNE)
def test_fused_multiply_add(operands: tuple[int, ...], rm: int) -> None:
    a, b, c, fmt = operands
    sign = FORMATS[fmt].sign
    expected = expected_fmadd(a, b, c, fmt, rm)
    check("fmadd", expected, fmt, a, b, c, fmt, rm)
    check("fmsub", expected, fmt, a, b, register((c ^ sign) & (2 * sign - 1), fmt), fmt, rm)
    minus_a = register((a ^ sign) & (2 * sign - 1), fmt)
    check("fnmsub", expected, fmt, minus_a, b, c, fmt, rm)
    minus_c = register((c ^ sign) & (2 * sign - 1), fmt)
    check("fnmadd", expected, fmt, minus_a, b, minus_c, fmt, rm)


@settings(max_examples=600, deadline=None)
@given(operands=operands(2))
def test_comparisons_and_choice(operands: tuple[int, ...]) -> None:
    a, b, fmt = operands
    x, y = number(a, fmt), number(b, fmt)
    signaling = NV if x.signaling or y.signaling else 0
    if "nan" in (x.kind, y.kind):
        assert outcome("eq", a, b, fmt) == (0, signaling)
        assert outcome("lt", a, b, fmt) == outcome("le", a, b, fmt) == (0, NV)
        number_or_nan = (
            register(FORMATS[fmt].nan, fmt) if x.kind == y.kind else b if x.kind == "nan" else a
        )
        assert outcome("min", a, b, fmt) == (number_or_nan, signaling)
        assert outcome("max", a, b, fmt) == (number_or_nan, signaling)
        return
    left, right = ((-1) ** n.sign * math.inf if n.kind == "infinity" else n.value for n in (x, y))
    assert outcome("eq", a, b, fmt) == (int(left == right), 0)
    assert outcome("lt", a, b, fmt) == (int(left < right), 0)
    assert outcome("le", a, b, fmt) == (int(left <= right), 0)
    low, high = sorted((a, b), key=lambda n: (left if n == a else right, -number(n, fmt).sign))
    assert outcome("min", a, b, fmt) == (low, 0)
    assert outcome("max", a, b, fmt) == (high, 0)


@settings(max_examples=300, deadline=None)
@given(operands=operands(2))
def test_signs_and_classes(operands: tuple[int, ...]) -> None:
    a, b, fmt = operands
    form = FORMATS[fmt]
    x, y = number(a, fmt), number(b, fmt)
    magnitude = a & (form.sign - 1)

    def with_sign(sign: int) -> tuple[int, int]:
        return register(magnitude | sign * form.sign, fmt), 0

    assert outcome("sgnj", a, b, fmt) == with_sign(y.sign)
    assert outcome("sgnjn", a, b, fmt) == with_sign(1 - y.sign)
    assert outcome("sgnjx", a, b, fmt) == with_sign(x.sign ^ y.sign)
    if x.kind == "nan":
        bit = 8 if x.signaling else 9
    else:
        smallest = Fraction(2) ** form.smallest_exponent
        size = (
            3 if x.kind == "infinity" else 0 if not x.value else 1 if abs(x.value) < smallest else 2
        )
        bit = 3 - size if x.sign else 4 + size
    assert outcome("classify", a, fmt) == (1 << bit, 0)


@settings(max_examples=600, deadline=None)
@given(operands=operands(1), kind=st.integers(0, 3), rm=st.sampled_from(MODES))
def test_to_integer(operands: tuple[int, ...], kind: int, rm: int) -> None:
    a, fmt = operands
    assert outcome("to_integer", a, kind, fmt, rm) == expected_to_integer(a, kind, fmt, rm)


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("rm", MODES)
def test_to_integer_at_its_limits(kind: int, rm: int) -> None:
    for limit in RANGES[kind]:
        for quarters in range(-6, 7):
            (pattern,) = struct.unpack("<q", struct.pack("<d", limit + quarters / 4))
            assert outcome("to_integer", pattern, kind, DOUBLE, rm) == expected_to_integer(
                pattern, kind, DOUBLE, rm
            )
        for step in range(-3, 4):
            single = struct.unpack("<I", struct.pack("<f", limit))[0] + step
            if single >= 0:
                assert outcome("to_integer", single, kind, SINGLE, rm) == expected_to_integer(
                    single, kind, SINGLE, rm
                )


integers = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.builds(
        lambda bit, change, sign: signed(sign * ((1 << bit) + change), 64),
        st.integers(0, 64),
        st.integers(-1025, 1025),
        st.sampled_from((-1, 1)),
    ),
)


@settings(max_examples=600, deadline=None)
@given(
    n=integers,
    kind=st.integers(0, 3),
    fmt=st.sampled_from((SINGLE, DOUBLE)),
    rm=st.sampled_from(MODES),
)
@example(-(2**63), 2, DOUBLE, RNE)
@example(-(2**63), 3, SINGLE, RNE)
@example(-1, 3, DOUBLE, RDN)
# The last bit decides that it is more than a tie.
@example(2**62 + 2**9 + 1, 2, DOUBLE, RNE)
@example(-(2**63) + 2**10 + 1, 3, DOUBLE, RNE)
@example(-(2**63) + 2**10 + 2, 3, DOUBLE, RNE)
def test_from_integer(n: int, kind: int, fmt: int, rm: int) -> None:
    value = (signed(n, 32), n & 0xFFFF_FFFF, n, n & (1 << 64) - 1)[kind]
    check("from_integer", rounded(Fraction(value), 0, fmt, rm), fmt, n, kind, fmt, rm)


@settings(max_examples=400, deadline=None)
@given(a=patterns(SINGLE))
def test_widen(a: int) -> None:
    x = number(a, SINGLE)
    if x.kind == "nan":
        check("widen", quiet(DOUBLE, x), DOUBLE, a)
    elif x.kind == "infinity":
        check("widen", (x.sign << 63 | FORMATS[DOUBLE].infinity, 0), DOUBLE, a)
    else:
        check("widen", rounded(x.value, x.sign, DOUBLE, RNE), DOUBLE, a)


@st.composite
def doubles_near_singles(draw: st.DrawFn) -> int:
    """Doubles that are, or nearly are, singles or lie half way between two."""
    pattern = draw(patterns(SINGLE))
    wide = Fpu().widen(pattern)
    half = draw(st.sampled_from((0, 0, 1 << 28, -(1 << 28))))
    moved = (wide & (1 << 64) - 1) + half + draw(st.integers(-2, 2))
    return signed(moved, 64)


@settings(max_examples=600, deadline=None)
@given(a=st.one_of(patterns(DOUBLE), doubles_near_singles()), rm=st.sampled_from(MODES))
def test_narrow(a: int, rm: int) -> None:
    x = number(a, DOUBLE)
    if x.kind == "nan":
        check("narrow", quiet(SINGLE, x), SINGLE, a, rm)
    elif x.kind == "infinity":
        check("narrow", (x.sign << 31 | FORMATS[SINGLE].infinity, 0), SINGLE, a, rm)
    else:
        check("narrow", rounded(x.value, x.sign, SINGLE, rm), SINGLE, a, rm)


@settings(max_examples=400, deadline=None)
@given(a=patterns(DOUBLE), b=patterns(DOUBLE))
def test_same_as_the_host(a: int, b: int) -> None:
    x, y = struct.unpack("<2d", struct.pack("<2q", a, b))
    for operation, host in (("add", add), ("sub", sub), ("mul", mul), ("div", truediv)):
        if operation == "div" and y == 0:
            continue
        value = host(x, y)
        expected = (
            0x7FF8 << 48 if math.isnan(value) else struct.unpack("<q", struct.pack("<d", value))[0]
        )
        assert outcome(operation, a, b, DOUBLE, RNE)[0] == expected
    if x >= 0:
        root = struct.unpack("<q", struct.pack("<d", math.sqrt(x)))[0]
        assert outcome("sqrt", a, DOUBLE, RNE)[0] == root


ONE_S, ONE_D = 0x3F80_0000, 0x3FF0 << 48
TINY = 0x0010 << 48


@pytest.mark.parametrize(
    ("operation", "arguments", "result", "flags"),
    [
        # Half of the smallest subnormal: a tie, to even.
        ("mul", (1, 0x3FE0 << 48, DOUBLE, RNE), 0, UF | NX),
        ("mul", (1, 0x3FE0 << 48, DOUBLE, RMM), 1, UF | NX),
        # An exact subnormal is not underflow.
        ("mul", (TINY, 0x3FE0 << 48, DOUBLE, RNE), 0x0008 << 48, 0),
        # Rounds to the smallest normal: not tiny if an unbounded exponent gives that too, else tiny.
        ("mul", (TINY, 0x3FEF_FFFF_FFFF_FFFF, DOUBLE, RNE), TINY, UF | NX),
        ("narrow", (0x380F_FFFF_FFFF_FFFF, RNE), 0x0080_0000, NX),
        ("narrow", (0x380F_FFFF_E000_0000, RNE), 0x0080_0000, UF | NX),
        ("narrow", (0x380F_FFFF_E000_0000, RUP), 0x0080_0000, UF | NX),
        ("narrow", (0x37FF_FFFF_FFFF_FFFF, RNE), 0x0040_0000, UF | NX),
        ("add", (0x7FEF_FFFF_FFFF_FFFF, 0x7C90 << 48, DOUBLE, RNE), 0x7FF0 << 48, OF | NX),
        ("add", (0x7FEF_FFFF_FFFF_FFFF, 0x7C90 << 48, DOUBLE, RTZ), 0x7FEF_FFFF_FFFF_FFFF, NX),
        ("sub", (ONE_D, ONE_D, DOUBLE, RDN), -(2**63), 0),
        ("div", (ONE_S, 0, SINGLE, RNE), 0x7F80_0000, DZ),
        # Infinity times zero is invalid whatever is added.
        ("fmadd", (0x7F80_0000, 0, 0x7FC0_0001, SINGLE, RNE), 0x7FC0_0000, NV),
        ("min", (0x7F80_0001, ONE_S, SINGLE), ONE_S, NV),
        ("min", (0x8000_0000, 0, SINGLE), 0x8000_0000, 0),
        # What stands above a single is ignored.
        ("add", (-(1 << 32) | ONE_S, -(1 << 32) | ONE_S, SINGLE, RNE), 0x4000_0000, 0),
        ("to_integer", (0xBF00_0000, 1, SINGLE, RNE), 0, NX),
        ("to_integer", (0xBF80_0000, 1, SINGLE, RNE), 0, NV),
        ("to_integer", (0x4F80_0000, 1, SINGLE, RNE), -1, NV),
        ("to_integer", (0x43EF_FFFF_FFFF_FFFF, 3, DOUBLE, RNE), -2048, 0),
    ],
)
def test_known_cases(operation: str, arguments: tuple[int, ...], result: int, flags: int) -> None:
    assert outcome(operation, *arguments) == (result, flags)


def test_flags_accumulate() -> None:
    fpu = Fpu()
    fpu.div(ONE_D, 0, DOUBLE, RNE)
    fpu.sqrt(signed(0xBFF0 << 48, 64), DOUBLE, RNE)
    assert fpu.flags == DZ | NV
    fpu.add(ONE_D, ONE_D, DOUBLE, RNE)
    assert fpu.flags == DZ | NV
