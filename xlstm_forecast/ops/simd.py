"""Vector instructions for the compiled kernels: arithmetic on Python objects emits LLVM code for one kind of vector."""

from __future__ import annotations

import functools
import math
from typing import Any

from llvmlite import ir
from numba.core import cgutils, codegen, config

I64 = ir.IntType(64)


class Value:
    """A vector in a block being built: arithmetic on it emits instructions, fused where the CPU can."""

    def __init__(self, simd: Simd, value: Any):
        self.simd, self.value = simd, value

    def _binary(self, op: str, left: Any, right: Any) -> Value:
        left, right = self.simd.lift(left), self.simd.lift(right)
        return Value(self.simd, getattr(self.simd.builder, op)(left.value, right.value, flags=("contract",)))

    def __add__(self, other: Any) -> Value:
        return self._binary("fadd", self, other)

    def __sub__(self, other: Any) -> Value:
        return self._binary("fsub", self, other)

    def __rsub__(self, other: Any) -> Value:
        return self._binary("fsub", other, self)

    def __mul__(self, other: Any) -> Value:
        return self._binary("fmul", self, other)

    def __truediv__(self, other: Any) -> Value:
        return self._binary("fdiv", self, other)

    def __rtruediv__(self, other: Any) -> Value:
        return self._binary("fdiv", other, self)

    __radd__, __rmul__ = __add__, __mul__


class Simd:
    """Emits vector code of one kind. NaN goes through every operation; nothing here assumes finite numbers."""

    def __init__(self, builder: Any, kind: str):
        self.builder = builder
        self.bits, self.lanes = width(kind)
        self.size = self.bits // 8
        self.scalar = ir.FloatType() if self.bits == 32 else ir.DoubleType()
        self.integer = ir.VectorType(ir.IntType(self.bits), self.lanes)
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.mantissa = 23 if self.bits == 32 else 52
        self.registers = registers(self.bits * self.lanes)

    def times(self, count: int) -> Simd:
        """The same with `count` times as many lanes: the CPU takes as many vectors side by side."""
        return self if count == 1 else Simd(self.builder, f"f{self.bits}x{self.lanes * count}")

    def lift(self, x: Any) -> Value:
        return x if isinstance(x, Value) else Value(self, ir.Constant(self.vector, [float(x)] * self.lanes))

    def _integers(self, x: int) -> Any:
        return ir.Constant(self.integer, [x] * self.lanes)

    def _pointer(self, address: Any, kind: Any) -> Any:
        return self.builder.inttoptr(address, kind.as_pointer())

    def load(self, address: Any) -> Value:
        return Value(self, self.builder.load(self._pointer(address, self.vector), align=self.size))

    def store(self, value: Any, address: Any) -> None:
        self.builder.store(self.lift(value).value, self._pointer(address, self.vector), align=self.size)

    def prefetch(self, address: Any, write: int = 0) -> None:
        """Have the cache line at an address come, write: to be written; any address will do."""
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        run = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0i8")
        self.builder.call(run, [self.builder.inttoptr(address, byte), flag(write), flag(3), flag(1)])

    def spread(self, address: Any) -> Value:
        """One number from memory in all lanes."""
        one = self.builder.load(self._pointer(address, self.scalar), align=self.size)
        single = self.builder.insert_element(
            ir.Constant(self.vector, ir.Undefined), one, ir.Constant(ir.IntType(32), 0)
        )
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return Value(self, self.builder.shuffle_vector(single, single, zeros))

    def pickup(self, x: Value, lanes: list[int]) -> Value:
        """The vector of the given lanes of x."""
        order = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), lanes)
        return Value(self, self.builder.shuffle_vector(x.value, x.value, order))

    def total(self, x: Value) -> Value:
        """The sum of all lanes, in all lanes."""
        step = self.lanes // 2
        while step:
            x = x + self.pickup(x, [k ^ step for k in range(self.lanes)])
            step //= 2
        return x

    def at(self, address: Any, *steps: Any) -> Any:
        """address + sum of steps: each a byte count, or a pair (count, byte stride), known now or at run time."""
        for step in steps:
            count, stride = step if isinstance(step, tuple) else (step, 1)
            if isinstance(count, int) and count == 0:
                continue
            stride = ir.Constant(I64, stride) if isinstance(stride, int) else stride
            count = ir.Constant(I64, count) if isinstance(count, int) else count
            address = self.builder.add(address, self.builder.mul(count, stride))
        return address

    def pick(self, op: str, left: Any, right: Any, yes: Any, no: Any) -> Value:
        """yes where `left op right`, else no (no where either is NaN)."""
        left, right, yes, no = (self.lift(x).value for x in (left, right, yes, no))
        return Value(self, self.builder.select(self.builder.fcmp_ordered(op, left, right), yes, no))

    def pick_sign(self, x: Value, yes: Any, no: Any) -> Value:
        """yes where the sign bit of x is set, else no."""
        negative = self.builder.icmp_signed("<", self._as_int(x), self._integers(0))
        return Value(self, self.builder.select(negative, self.lift(yes).value, self.lift(no).value))

    def _as_int(self, x: Value) -> Any:
        return self.builder.bitcast(x.value, self.integer)

    def _as_float(self, value: Any) -> Value:
        return Value(self, self.builder.bitcast(value, self.vector))

    def _sign_mask(self, x: Value, op: str, mask: int) -> Any:
        return getattr(self.builder, op)(self._as_int(x), self._integers(mask))

    def negative_abs(self, x: Value) -> Value:
        return self._as_float(self._sign_mask(x, "or_", 1 << (self.bits - 1)))

    def abs(self, x: Value) -> Value:
        return self._as_float(self._sign_mask(x, "and_", (1 << (self.bits - 1)) - 1))

    def flip_sign(self, x: Value, by: Value) -> Value:
        """x with its sign changed where `by` has the sign bit set."""
        return self._as_float(self.builder.xor(self._as_int(x), self._sign_mask(by, "and_", 1 << (self.bits - 1))))

    def _reduced(self, x: Value) -> tuple[Value, Any]:
        """exp(r) - 1 and the bits of 2^k, for x = k ln 2 + r <= 0; below the end of the range x counts as the end."""
        end, magic = (-87.0, 1.5 * 2.0**23) if self.bits == 32 else (-708.0, 1.5 * 2.0**52)
        high, low = (0.693359375, -2.12194440e-4) if self.bits == 32 else (0.693145751953125, 1.42860682030941723e-6)
        x = self.pick("<", x, end, end, x)
        shifted = x * (1 / math.log(2)) + magic
        k = shifted - magic
        r = (x - k * high) - k * low
        series = self.series(r, [1 / math.factorial(j) for j in range(1, 8 if self.bits == 32 else 14)])
        return r * series, self.builder.shl(self._as_int(shifted), self._integers(self.mantissa))

    def series(self, x: Value, terms: list[float]) -> Value:
        total = self.lift(terms[-1])
        for term in terms[-2::-1]:
            total = total * x + term
        return total

    def exp(self, x: Value) -> Value:
        """exp(x) for x <= 0, about 1 ulp; the smallest normal number stands for anything below it."""
        part, power = self._reduced(x)
        return self._as_float(self.builder.add(self._as_int(part + 1.0), power))

    def expm1(self, x: Value) -> Value:
        """exp(x) - 1 for x <= 0, without cancellation near 0."""
        part, power = self._reduced(x)
        scale = self._as_float(self.builder.add(self._as_int(self.lift(1.0)), power))
        return part * scale + (scale - 1.0)

    def log1p(self, x: Value) -> Value:
        """log(1 + x) for x in [0, 1], by 2 atanh(x / (2 + x))."""
        s = x / (x + 2.0)
        terms = [2 / (2 * j + 1) for j in range(8 if self.bits == 32 else 17)]
        return s * self.series(s * s, terms)

    def sigmoid(self, x: Value) -> Value:
        e = self.exp(self.negative_abs(x))
        return self.pick(">=", x, 0.0, 1.0, e) / (e + 1.0)

    def sqrt(self, x: Value) -> Value:
        name = f"llvm.sqrt.v{self.lanes}f{self.bits}"
        root = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(self.vector, [self.vector]), name)
        return Value(self, self.builder.call(root, [x.value]))

    def tanh(self, x: Value) -> Value:
        e = self.expm1(self.negative_abs(x) * 2.0)
        return self.flip_sign((0.0 - e) / (e + 2.0), x)


def width(kind: str) -> tuple[int, int]:
    """Bits of a number and lanes of a kind such as "f32x16"; what follows a blank does not count."""
    bits, lanes = kind.split()[0][1:].split("x")
    return int(bits), int(lanes)


@functools.cache
def registers(bits: int) -> int:
    """How many vectors of so many bits this CPU's registers hold; wider ones than its own take several each."""
    features = _features()
    if "avx512f" in features:
        count, own = 32, 512
    elif "avx2" in features:
        count, own = 16, 256
    else:
        count, own = 32 if "neon" in features else 16, 128
    return count // max(1, bits // own)


def _features() -> set[str]:
    """What numba compiles for: this CPU's features as far as it uses them, or those of NUMBA_CPU_FEATURES."""
    told: str | None = getattr(config, "CPU_FEATURES", None)
    told = codegen.get_host_cpu_features() if told is None else told
    return {name[1:] for name in told.split(",") if name.startswith("+")}
