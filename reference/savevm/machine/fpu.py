"""IEEE 754 arithmetic as the extensions F and D of RISC-V (20191213) want it, on bit patterns.

A hart has one ``Fpu`` and reads and writes its ``flags`` as fcsr's accrued exceptions (NX 1, UF 2,
OF 4, DZ 8, NV 16); operations only ever set bits there.

``fmt`` is the instruction's: ``SINGLE`` (0) or ``DOUBLE`` (1).  A double is its pattern as a signed
number of 64 bits; of a single the low 32 bits count, and results have zeros above them: NaN boxing
is the caller's.  ``rm`` is a rounding mode 0 to 4 (RNE RTZ RDN RUP RMM), a dynamic one already
replaced by frm.  ``kind`` is the integer that a conversion names in rs2: 0 W, 1 WU, 2 L, 3 LU.
Integers are signed numbers of 64 bits as in a register, those of 32 bits sign-extended, WU too.

A NaN that comes out is the canonical one, underflow is judged after rounding, and results and flags
are exact everywhere.  All is computed in integers, so that the same comes out compiled or not.
"""

# Nothing relies on 64 bits that wrap.  What mypyc makes of constants is avoided where it matters: a
# small one that a variable shifts left has 32 bits only, and one beyond 62 bits is a slow object.

from math import sqrt
from typing import Final, final

from mypy_extensions import i64

__all__ = ["DOUBLE", "SINGLE", "Fpu"]

SINGLE: Final = 0
DOUBLE: Final = 1

_NX: Final = 1
_UF: Final = 2
_OF: Final = 4
_DZ: Final = 8
_NV: Final = 16

_RNE: Final = 0
_RTZ: Final = 1
_RDN: Final = 2
_RUP: Final = 3

_MIN: Final = -0x8000_0000_0000_0000
_MAX: Final = 0x7FFF_FFFF_FFFF_FFFF
_LOW: Final = 0xFFFF_FFFF
_INFINITY_S: Final = 0x7F80_0000
_INFINITY_D: Final = 0x7FF0_0000_0000_0000
_NAN_S: Final = 0x7FC0_0000
_NAN_D: Final = 0x7FF8_0000_0000_0000

# Inside, a finite number is sign, exponent and significand: 1 <= significand / 2**52 < 2 in either
# format.  A zero has the significand 0 and an exponent below all others, an infinity that of _TOP
# and the significand 0, a NaN that of _TOP and another significand.  On its way to rounding a
# significand has its leading bit at 61 and in its lowest bit whether anything was lost below.
_TOP: Final = 0x10000
_BOTTOM: Final = -0x10000
_HIDDEN: Final = 1 << 52
_LEAD: Final = 1 << 61
# Numbers of two words have 61 bits in the lower.
_WORD: Final = _LEAD - 1


def _unpack(a: i64, fmt: i64) -> tuple[i64, i64]:
    """Exponent and significand."""
    exponent: i64
    fraction: i64
    if fmt:
        exponent = (a >> 52) & 0x7FF
        fraction = a & (_HIDDEN - 1)
        if exponent != 0 and exponent != 0x7FF:
            return exponent - 1023, fraction | _HIDDEN
        if exponent != 0:
            return _TOP, fraction
        exponent = -1022
    else:
        exponent = (a >> 23) & 0xFF
        fraction = (a & 0x7F_FFFF) << 29
        if exponent != 0 and exponent != 0xFF:
            return exponent - 127, fraction | _HIDDEN
        if exponent != 0:
            return _TOP, fraction
        exponent = -126
    if fraction == 0:
        return _BOTTOM, 0
    shift = _below_lead(fraction) - 9
    return exponent - shift, fraction << shift


def _sign(a: i64, fmt: i64) -> i64:
    return (a >> 63) & 1 if fmt else (a >> 31) & 1


def _pattern(a: i64, fmt: i64) -> i64:
    return a if fmt else a & _LOW


def _nan(fmt: i64) -> i64:
    return _NAN_D if fmt else _NAN_S


def _infinity(sign: i64, fmt: i64) -> i64:
    return _zero(sign, fmt) | (_INFINITY_D if fmt else _INFINITY_S)


def _zero(sign: i64, fmt: i64) -> i64:
    return (-sign) << 63 if fmt else sign << 31


def _is_nan(a: i64, fmt: i64) -> bool:
    if fmt:
        return (a >> 52) & 0x7FF == 0x7FF and a & (_HIDDEN - 1) != 0
    return a & 0x7FFF_FFFF > _INFINITY_S


def _is_signaling(a: i64, fmt: i64) -> bool:
    if fmt:
        return a & _MAX > _INFINITY_D and a & 0x8_0000_0000_0000 == 0
    return a & 0x7FFF_FFFF > _INFINITY_S and a & 0x40_0000 == 0


def _order(a: i64, fmt: i64) -> i64:
    """A number that is ordered as the value of ``a``, which is none of the NaNs."""
    if fmt:
        return a if a >= 0 else -(a + _LEAD + _LEAD + _LEAD + _LEAD)
    return -(a & 0x7FFF_FFFF) if a & 0x8000_0000 else a & 0x7FFF_FFFF


def _below_lead(n: i64) -> i64:
    """By how much ``n``, 0 < n < 2**62, has to be shifted for its leading bit to be at 61."""
    shift: i64 = 0
    if n < 1 << 30:
        shift = 32
        n <<= 32
    if n < 1 << 46:
        shift += 16
        n <<= 16
    if n < 1 << 54:
        shift += 8
        n <<= 8
    if n < 1 << 58:
        shift += 4
        n <<= 4
    if n < 1 << 60:
        shift += 2
        n <<= 2
    return shift if n >= _LEAD else shift + 1


def _shift_right(n: i64, shift: i64) -> i64:
    """``n >> shift``, its lowest bit set if bits that are set were lost."""
    if shift == 0:
        return n
    if shift > 62:
        return 1 if n != 0 else 0
    shifted = n >> shift
    return shifted if shifted << shift == n else shifted | 1


def _product(a: i64, b: i64) -> tuple[i64, i64]:
    """The product of two significands: what is above its low 54 bits, and these."""
    high_a = a >> 27
    low_a = a & 0x7FF_FFFF
    high_b = b >> 27
    low_b = b & 0x7FF_FFFF
    middle = high_a * low_b + low_a * high_b
    low = low_a * low_b + ((middle & 0x7FF_FFFF) << 27)
    return high_a * high_b + (middle >> 27) + (low >> 54), low & ((1 << 54) - 1)


def _rounds_up(sign: i64, kept: i64, rest: i64, half: i64, rm: i64) -> bool:
    """Whether the magnitude ``kept`` is increased for ``rest``, which is not 0, to be dropped."""
    if rm == _RNE:
        return rest > half or (rest == half and kept & 1 != 0)
    if rm == _RTZ:
        return False
    if rm == _RDN:
        return sign != 0
    if rm == _RUP:
        return sign == 0
    return rest >= half


@final
class Fpu:
    """The arithmetic of a hart and the exceptions that it raised since ``flags`` was written."""

    def __init__(self) -> None:
        self.flags: i64 = 0

    def add(self, a: i64, b: i64, fmt: i64, rm: i64) -> i64:
        """``a + b``."""
        exponent, larger = _unpack(a, fmt)
        exponent_b, smaller = _unpack(b, fmt)
        sign = _sign(a, fmt)
        sign_b = _sign(b, fmt)
        if exponent == _TOP or exponent_b == _TOP:
            if _is_nan(a, fmt) or _is_nan(b, fmt):
                return self._propagate(a, b, fmt)
            if exponent == exponent_b and sign != sign_b:
                return self._invalid(fmt)
            return _infinity(sign if exponent == _TOP else sign_b, fmt)
        if exponent < exponent_b:
            exponent, exponent_b = exponent_b, exponent
            larger, smaller = smaller, larger
            sign, sign_b = sign_b, sign
        larger <<= 8
        smaller = _shift_right(smaller << 8, exponent - exponent_b)
        if sign == sign_b:
            larger += smaller
            if larger == 0:
                return _zero(sign, fmt)
        else:
            larger -= smaller
            if larger == 0:
                return _zero(1 if rm == _RDN else 0, fmt)
            if larger < 0:
                larger = -larger
                sign = sign_b
        shift = _below_lead(larger)
        return self._round(sign, exponent + 1 - shift, larger << shift, fmt, rm)

    def sub(self, a: i64, b: i64, fmt: i64, rm: i64) -> i64:
        """``a - b``."""
        return self.add(a, b ^ _zero(1, fmt), fmt, rm)

    def mul(self, a: i64, b: i64, fmt: i64, rm: i64) -> i64:
        """``a * b``."""
        exponent, significand = _unpack(a, fmt)
        exponent_b, significand_b = _unpack(b, fmt)
        sign = _sign(a, fmt) ^ _sign(b, fmt)
        if exponent == _TOP or exponent_b == _TOP:
            if _is_nan(a, fmt) or _is_nan(b, fmt):
                return self._propagate(a, b, fmt)
            if exponent == _BOTTOM or exponent_b == _BOTTOM:
                return self._invalid(fmt)
            return _infinity(sign, fmt)
        if significand == 0 or significand_b == 0:
            return _zero(sign, fmt)
        return self._multiply(sign, exponent + exponent_b, significand, significand_b, fmt, rm)

    def div(self, a: i64, b: i64, fmt: i64, rm: i64) -> i64:
        """``a / b``."""
        exponent, rest = _unpack(a, fmt)
        exponent_b, divisor = _unpack(b, fmt)
        sign = _sign(a, fmt) ^ _sign(b, fmt)
        if exponent == _TOP or exponent_b == _TOP:
            if _is_nan(a, fmt) or _is_nan(b, fmt):
                return self._propagate(a, b, fmt)
            if exponent == exponent_b:
                return self._invalid(fmt)
            return _infinity(sign, fmt) if exponent == _TOP else _zero(sign, fmt)
        if divisor == 0:
            if rest == 0:
                return self._invalid(fmt)
            self.flags |= _DZ
            return _infinity(sign, fmt)
        if rest == 0:
            return _zero(sign, fmt)
        exponent -= exponent_b
        if rest < divisor:
            rest <<= 1
            exponent -= 1
        # The quotient has its first bit already; ten more at a time are what 63 bits allow.
        rest -= divisor
        quotient: i64 = 1
        shift: i64 = 61
        enough: i64 = 1 if fmt else 31
        while shift > enough and rest != 0:
            rest <<= 10
            digit = rest // divisor
            rest -= digit * divisor
            quotient = (quotient << 10) | digit
            shift -= 10
        quotient <<= shift
        return self._round(sign, exponent, quotient | 1 if rest != 0 else quotient, fmt, rm)

    def sqrt(self, a: i64, fmt: i64, rm: i64) -> i64:
        """The square root of ``a``."""
        exponent, significand = _unpack(a, fmt)
        if exponent == _TOP and significand != 0:
            return self._propagate(a, a, fmt)
        if significand == 0 and exponent == _BOTTOM:
            return _pattern(a, fmt)
        if _sign(a, fmt):
            return self._invalid(fmt)
        if exponent == _TOP:
            return _pattern(a, fmt)
        # Half of the root's bits, corrected where the host's root of a rounded number is off; then
        # the other half by one division.
        square = significand << (8 + (exponent & 1))
        root: i64 = int(sqrt(float(square)))
        while root * root > square:
            root -= 1
        while (root + 1) * (root + 1) <= square:
            root += 1
        rest = (square - root * root) << 31
        digits = rest // (root << 1)
        rest = ((rest - digits * (root << 1)) << 31) - digits * digits
        root = (root << 31) + digits
        if rest < 0:
            root -= 1
        return self._round(0, exponent >> 1, root if rest == 0 else root | 1, fmt, rm)

    def fmadd(self, a: i64, b: i64, c: i64, fmt: i64, rm: i64) -> i64:
        """``a * b + c``, rounded once."""
        exponent, significand = _unpack(a, fmt)
        exponent_b, significand_b = _unpack(b, fmt)
        exponent_c, significand_c = _unpack(c, fmt)
        sign = _sign(a, fmt) ^ _sign(b, fmt)
        sign_c = _sign(c, fmt)
        if exponent == _TOP or exponent_b == _TOP or exponent_c == _TOP:
            return self._fmadd_special(a, b, c, fmt)
        if significand == 0 or significand_b == 0:
            if significand_c != 0 or sign == sign_c:
                return _pattern(c, fmt)
            return _zero(1 if rm == _RDN else 0, fmt)
        exponent += exponent_b
        if significand_c == 0:
            return self._multiply(sign, exponent, significand, significand_b, fmt, rm)
        # Two words, the leading bit of either number at 60 of the upper one.
        high, low = _product(significand, significand_b)
        if high >= 1 << 51:
            exponent += 1
            high = (high << 9) | (low >> 45)
            low = (low & ((1 << 45) - 1)) << 16
        else:
            high = (high << 10) | (low >> 44)
            low = (low & ((1 << 44) - 1)) << 17
        high_c = significand_c << 8
        low_c: i64 = 0
        shift = exponent - exponent_c
        if shift < 0:
            exponent = exponent_c
            high, high_c = high_c, high
            low, low_c = low_c, low
            sign, sign_c = sign_c, sign
            shift = -shift
        if shift >= 61:
            # Not 0, and what it is matters no more.
            low_c = _shift_right(high_c, shift - 61)
            high_c = 0
        elif shift > 0:
            kept = high_c >> shift
            low_c = ((high_c - (kept << shift)) << (61 - shift)) | _shift_right(low_c, shift)
            high_c = kept
        if sign == sign_c:
            low += low_c
            high += high_c + (low >> 61)
            low &= _WORD
        else:
            high -= high_c
            low -= low_c
            if high < 0 or (high == 0 and low < 0):
                high = -high
                low = -low
                sign = sign_c
            if low < 0:
                low += _LEAD
                high -= 1
        if high == 0:
            if low == 0:
                return _zero(1 if rm == _RDN else 0, fmt)
            high = low
            low = 0
            exponent -= 61
        shift = _below_lead(high)
        high = (high << shift) | _shift_right(low, 61 - shift)
        return self._round(sign, exponent + 1 - shift, high, fmt, rm)

    def fmsub(self, a: i64, b: i64, c: i64, fmt: i64, rm: i64) -> i64:
        """``a * b - c``, rounded once."""
        return self.fmadd(a, b, c ^ _zero(1, fmt), fmt, rm)

    def fnmsub(self, a: i64, b: i64, c: i64, fmt: i64, rm: i64) -> i64:
        """``-(a * b) + c``, rounded once."""
        return self.fmadd(a ^ _zero(1, fmt), b, c, fmt, rm)

    def fnmadd(self, a: i64, b: i64, c: i64, fmt: i64, rm: i64) -> i64:
        """``-(a * b) - c``, rounded once."""
        return self.fmadd(a ^ _zero(1, fmt), b, c ^ _zero(1, fmt), fmt, rm)

    def min(self, a: i64, b: i64, fmt: i64) -> i64:
        """The lesser, -0 below +0; of a number and a NaN the number."""
        return self._choose(a, b, fmt, True)

    def max(self, a: i64, b: i64, fmt: i64) -> i64:
        """The greater, +0 above -0; of a number and a NaN the number."""
        return self._choose(a, b, fmt, False)

    def sgnj(self, a: i64, b: i64, fmt: i64) -> i64:
        """``a`` with the sign of ``b``."""
        return _pattern((a & ~_zero(1, fmt)) | (b & _zero(1, fmt)), fmt)

    def sgnjn(self, a: i64, b: i64, fmt: i64) -> i64:
        """``a`` with the opposite of the sign of ``b``."""
        return _pattern((a & ~_zero(1, fmt)) | (~b & _zero(1, fmt)), fmt)

    def sgnjx(self, a: i64, b: i64, fmt: i64) -> i64:
        """``a``, its sign inverted if ``b`` has one."""
        return _pattern(a ^ (b & _zero(1, fmt)), fmt)

    def eq(self, a: i64, b: i64, fmt: i64) -> i64:
        """1 if equal, else 0; only signaling NaNs are invalid."""
        if _is_nan(a, fmt) or _is_nan(b, fmt):
            self._propagate(a, b, fmt)
            return 0
        return 1 if _order(a, fmt) == _order(b, fmt) else 0

    def lt(self, a: i64, b: i64, fmt: i64) -> i64:
        """1 if ``a`` is below ``b``, else 0; all NaNs are invalid."""
        if _is_nan(a, fmt) or _is_nan(b, fmt):
            self.flags |= _NV
            return 0
        return 1 if _order(a, fmt) < _order(b, fmt) else 0

    def le(self, a: i64, b: i64, fmt: i64) -> i64:
        """1 if ``a`` is at most ``b``, else 0; all NaNs are invalid."""
        if _is_nan(a, fmt) or _is_nan(b, fmt):
            self.flags |= _NV
            return 0
        return 1 if _order(a, fmt) <= _order(b, fmt) else 0

    def classify(self, a: i64, fmt: i64) -> i64:
        """FCLASS: one bit of ten, from -infinity (0) to +infinity (7), signaling and quiet NaN."""
        if _is_nan(a, fmt):
            return 0x100 if _is_signaling(a, fmt) else 0x200
        negative = _sign(a, fmt) != 0
        magnitude = a & _MAX if fmt else a & 0x7FFF_FFFF
        if magnitude == 0:
            return 0x8 if negative else 0x10
        if magnitude < (_HIDDEN if fmt else 0x80_0000):
            return 0x4 if negative else 0x20
        if magnitude < (_INFINITY_D if fmt else _INFINITY_S):
            return 0x2 if negative else 0x40
        return 0x1 if negative else 0x80

    def to_integer(self, a: i64, kind: i64, fmt: i64, rm: i64) -> i64:
        """FCVT to an integer; what it cannot express, or a NaN, is invalid and the nearest limit."""
        exponent, significand = _unpack(a, fmt)
        sign = _sign(a, fmt)
        if exponent > 63:
            return self._saturate(0 if _is_nan(a, fmt) else sign, kind)
        if significand == 0:
            return 0
        if exponent == 63:
            if kind == 3 and sign == 0:
                return ((significand - _HIDDEN) << 11) + _MIN
            if kind == 2 and sign != 0 and significand == _HIDDEN:
                return _MIN
            return self._saturate(sign, kind)
        significand <<= 9
        rest: i64 = 0
        if exponent == 62:
            whole = significand << 1
        else:
            if exponent < 0:
                significand = _shift_right(significand, -exponent)
                exponent = 0
            shift = 61 - exponent
            whole = significand >> shift
            rest = significand - (whole << shift)
            if rest != 0 and _rounds_up(sign, whole, rest, _LEAD >> (62 - shift), rm):
                whole += 1
        if kind == 0:
            if whole > 0x7FFF_FFFF + sign:
                return self._saturate(sign, kind)
        elif kind == 1:
            if whole > (0 if sign else _LOW):
                return self._saturate(sign, kind)
            whole = (whole ^ 0x8000_0000) - 0x8000_0000
        elif kind == 3:
            if sign != 0 and whole != 0:
                return self._saturate(sign, kind)
        if rest != 0:
            self.flags |= _NX
        return -whole if sign else whole

    def from_integer(self, n: i64, kind: i64, fmt: i64, rm: i64) -> i64:
        """FCVT from an integer; of a W or WU only the low 32 bits count."""
        if kind == 0:
            n = ((n & _LOW) ^ 0x8000_0000) - 0x8000_0000
        elif kind == 1:
            n &= _LOW
        if n == 0:
            return 0
        sign: i64 = 0
        magnitude = n
        exponent: i64 = 61
        if n < 0:
            if kind == 3:
                low: i64 = 1 if n & 3 != 0 else 0
                return self._round(0, 63, ((n >> 2) & (_LEAD + _WORD)) | low, fmt, rm)
            if n == _MIN:
                return self._round(1, 63, _LEAD, fmt, rm)
            sign = 1
            magnitude = -n
        if magnitude >> 62 != 0:
            magnitude = (magnitude >> 1) | (magnitude & 1)
            exponent = 62
        shift = _below_lead(magnitude)
        return self._round(sign, exponent - shift, magnitude << shift, fmt, rm)

    def widen(self, a: i64) -> i64:
        """FCVT.D.S."""
        exponent, significand = _unpack(a, SINGLE)
        if exponent == _TOP:
            if significand == 0:
                return _infinity(_sign(a, SINGLE), DOUBLE)
            self._propagate(a, a, SINGLE)
            return _NAN_D
        if significand == 0:
            return _zero(_sign(a, SINGLE), DOUBLE)
        return _zero(_sign(a, SINGLE), DOUBLE) | ((exponent + 1022) * _HIDDEN + significand)

    def narrow(self, a: i64, rm: i64) -> i64:
        """FCVT.S.D."""
        exponent, significand = _unpack(a, DOUBLE)
        if exponent == _TOP:
            if significand == 0:
                return _infinity(_sign(a, DOUBLE), SINGLE)
            self._propagate(a, a, DOUBLE)
            return _NAN_S
        if significand == 0:
            return _zero(_sign(a, DOUBLE), SINGLE)
        return self._round(_sign(a, DOUBLE), exponent, significand << 9, SINGLE, rm)

    def _multiply(self, sign: i64, exponent: i64, a: i64, b: i64, fmt: i64, rm: i64) -> i64:
        """Of two significands that are not 0; ``exponent`` is the sum of theirs."""
        high, low = _product(a, b)
        if high >= 1 << 51:
            high = (high << 10) | _shift_right(low, 44)
            return self._round(sign, exponent + 1, high, fmt, rm)
        return self._round(sign, exponent, (high << 11) | _shift_right(low, 43), fmt, rm)

    def _fmadd_special(self, a: i64, b: i64, c: i64, fmt: i64) -> i64:
        exponent = _unpack(a, fmt)[0]
        exponent_b = _unpack(b, fmt)[0]
        sign = _sign(a, fmt) ^ _sign(b, fmt)
        infinite = exponent == _TOP or exponent_b == _TOP
        if _is_nan(a, fmt) or _is_nan(b, fmt):
            if _is_signaling(c, fmt):
                self.flags |= _NV
            return self._propagate(a, b, fmt)
        # Invalid even if c is a quiet NaN: IEEE 754 leaves that open, RISC-V does not.
        if infinite and (exponent == _BOTTOM or exponent_b == _BOTTOM):
            return self._invalid(fmt)
        if _is_nan(c, fmt):
            return self._propagate(c, c, fmt)
        if not infinite:
            return _pattern(c, fmt)
        if _unpack(c, fmt)[0] == _TOP and _sign(c, fmt) != sign:
            return self._invalid(fmt)
        return _infinity(sign, fmt)

    def _choose(self, a: i64, b: i64, fmt: i64, least: bool) -> i64:
        nan_a = _is_nan(a, fmt)
        nan_b = _is_nan(b, fmt)
        if nan_a or nan_b:
            canonical = self._propagate(a, b, fmt)
            if nan_a and nan_b:
                return canonical
            return _pattern(b if nan_a else a, fmt)
        order_a = _order(a, fmt)
        order_b = _order(b, fmt)
        below = order_a < order_b or (order_a == order_b and _sign(a, fmt) != 0)
        return _pattern(a if below == least else b, fmt)

    def _propagate(self, a: i64, b: i64, fmt: i64) -> i64:
        if _is_signaling(a, fmt) or _is_signaling(b, fmt):
            self.flags |= _NV
        return _nan(fmt)

    def _invalid(self, fmt: i64) -> i64:
        self.flags |= _NV
        return _nan(fmt)

    def _saturate(self, sign: i64, kind: i64) -> i64:
        self.flags |= _NV
        if kind == 0:
            return -0x8000_0000 if sign else 0x7FFF_FFFF
        if kind == 2:
            return _MIN if sign else _MAX
        return 0 if sign else -1

    def _round(self, sign: i64, exponent: i64, significand: i64, fmt: i64, rm: i64) -> i64:
        """The pattern of ``significand * 2**(exponent - 61)``, its leading bit at 61."""
        drop: i64
        top: i64
        if fmt:
            drop = 9
            exponent += 1023
            top = 0x7FF
        else:
            drop = 38
            exponent += 127
            top = 0xFF
        half: i64 = _LEAD >> (62 - drop)
        tiny = False
        if exponent < 1:
            # Not tiny after rounding: only what an unbounded exponent would round up to the normals.
            kept = significand >> drop
            rest = significand - (kept << drop)
            tiny = (
                exponent < 0
                or kept + 1 < _LEAD >> (drop - 1)
                or rest == 0
                or not _rounds_up(sign, kept, rest, half, rm)
            )
            significand = _shift_right(significand, 1 - exponent)
            exponent = 1
        kept = significand >> drop
        rest = significand - (kept << drop)
        if rest != 0:
            self.flags |= _NX | _UF if tiny else _NX
            if _rounds_up(sign, kept, rest, half, rm):
                kept += 1
        bits: i64 = top << (61 - drop)
        # The hidden bit, or a carry into it, adds one to the exponent.
        if exponent < top and ((exponent - 1) << (61 - drop)) + kept < bits:
            bits = ((exponent - 1) << (61 - drop)) + kept
        else:
            self.flags |= _OF | _NX
            if rm == _RTZ or rm == (_RUP if sign else _RDN):
                bits -= 1
        return bits | _zero(sign, fmt)
