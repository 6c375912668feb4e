"""What the compiled kernels are made of: intrinsics from vector code, small matrix products, and their compilation.

An inner block is a function that emits vector instructions for one kind ("f32x16": float32, 16 lanes) and compiles for
any CPU that LLVM knows. Blocks and kernels take addresses, byte strides and counts: no array object is built per call.
"""

from __future__ import annotations

import functools
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
from llvmlite import ir
from numba import extending, njit, types
from numba.core import cgutils

from . import cpu_team
from .simd import I64, Simd, Value, width
from .threads import Kernel

ENABLED = not getattr(numba.config, "DISABLE_JIT", False)
KERNELS = ("blocks", "cpu", "cpu_front", "cpu_mixer", "cpu_mlstm", "cpu_rows", "simd")
DIGEST = f"{zlib.crc32(b''.join(Path(__file__).with_name(f'{x}.py').read_bytes() for x in KERNELS)):08x}"
Stream = tuple[int, int, int]  # address of the first row at the first step, bytes from row to row, from step to step
intrinsic: Any = extending.intrinsic


def block(emit: Callable[..., None], **fixed: int) -> Any:
    """Make an intrinsic of `emit(simd, *arguments, **fixed)`, called as block(kind, (64-bit integers, ...))."""

    @intrinsic(prefer_literal=True)
    def call(typingctx: Any, kind: Any, arguments: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            values = cgutils.unpack_tuple(builder, args[1])
            given = [context.cast(builder, x, t, types.int64) for x, t in zip(values, arguments.types, strict=True)]
            emit(Simd(builder, kind.literal_value), *given, **fixed)
            return context.get_dummy_value()

        return types.void(kind, arguments), generate

    return call


@intrinsic(prefer_literal=True)
def bytes_of(typingctx: Any, kind: Any) -> Any:
    """Bytes of one number of the kind."""
    size = width(kind.literal_value)[0] // 8
    return types.int64(kind), lambda context, builder, signature, args: ir.Constant(I64, size)


@intrinsic(prefer_literal=True)
def vector_bytes(typingctx: Any, kind: Any) -> Any:
    """Bytes of one vector of the kind."""
    bits, lanes = width(kind.literal_value)
    return types.int64(kind), lambda context, builder, signature, args: ir.Constant(I64, bits // 8 * lanes)


@intrinsic
def byte_at(typingctx: Any, address: Any) -> Any:
    """The byte at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(builder.inttoptr(args[0], ir.IntType(8).as_pointer()), align=1)
        return builder.zext(value, I64)

    return types.int64(types.int64), generate


def product(
    simd: Simd,
    start: list[list[Value | None]],
    count: Any,
    a: Any,
    a_row: Any,
    a_step: Any,
    b: Any,
    b_column: Any,
    b_step: Any,
    split: int,
) -> list[list[Value]]:
    """start + A B for a few rows and vectors of columns held in registers.

    A's numbers lie at a + row * a_row + k * a_step, B's vectors at b + column * b_column + k * b_step, k < count, a
    multiple of `split`; with few accumulators, `split` of them per result hide the latency of the multiply-add. Where
    the CPU has too few registers, columns are taken in groups, and fewer accumulators.
    """
    rows, columns = len(start), len(start[0])
    groups = next(g for g in range(1, columns + 1) if g == columns or _fits(simd, rows, -(-columns // g), 1))
    take = -(-columns // groups)
    split = split_of(simd, rows, take, split)
    total: list[list[Value]] = [[] for _ in start]
    for first in range(0, columns, take):
        part = [row[first : first + take] for row in start]
        more = _product(simd, part, count, a, a_row, a_step, simd.at(b, (first, b_column)), b_column, b_step, split)
        total = [row + new for row, new in zip(total, more, strict=True)]
    return total


def split_of(simd: Simd, rows: int, columns: int, split: int) -> int:
    """How many accumulators per result `product` has where `split` are asked for: on them depends how it rounds."""
    while split > 1 and not _fits(simd, rows, columns, split):
        split //= 2
    return split


def _fits(simd: Simd, rows: int, columns: int, split: int) -> bool:
    """Whether the registers hold the accumulators of a product beside a row of B and a number of A."""
    return rows * columns * split + columns + 1 <= simd.registers


def _product(
    simd: Simd,
    start: list[list[Value | None]],
    count: Any,
    a: Any,
    a_row: Any,
    a_step: Any,
    b: Any,
    b_column: Any,
    b_step: Any,
    split: int,
) -> list[list[Value]]:
    """`product` of columns that fit the registers."""
    builder, rows, columns = simd.builder, len(start), len(start[0])
    sums = [
        [[cgutils.alloca_once(builder, simd.vector) for _ in range(columns)] for _ in range(rows)] for _ in range(split)
    ]
    for part in range(split):
        for row in range(rows):
            for column in range(columns):
                first = start[row][column] if part == 0 else None
                builder.store(simd.lift(0.0 if first is None else first).value, sums[part][row][column])
    trips = builder.udiv(count, ir.Constant(I64, split)) if split > 1 else count
    with cgutils.for_range(builder, trips, intp=I64) as loop:
        for part in range(split):
            k = builder.add(builder.mul(loop.index, ir.Constant(I64, split)), ir.Constant(I64, part))
            line = simd.at(b, (k, b_step))
            right = [simd.load(simd.at(line, (column, b_column))) for column in range(columns)]
            for row in range(rows):
                left = simd.spread(simd.at(a, (row, a_row), (k, a_step)))
                for column in range(columns):
                    slot = sums[part][row][column]
                    builder.store((Value(simd, builder.load(slot)) + left * right[column]).value, slot)
    total = [[Value(simd, builder.load(x)) for x in row] for row in sums[0]]
    for part in range(1, split):
        total = [
            [x + Value(simd, builder.load(y)) for x, y in zip(row, more, strict=True)]
            for row, more in zip(total, sums[part], strict=True)
        ]
    return total


@intrinsic(prefer_literal=True)
def number_at(typingctx: Any, kind: Any, address: Any) -> Any:
    """The number of the kind at an address."""
    result = types.float32 if width(kind.literal_value)[0] == 32 else types.float64

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        simd = Simd(builder, kind.literal_value)
        return builder.load(builder.inttoptr(args[1], simd.scalar.as_pointer()), align=simd.size)

    return result(kind, types.int64), generate


@intrinsic(prefer_literal=True)
def put_number(typingctx: Any, kind: Any, address: Any, value: Any) -> Any:
    """Store a number of the kind at an address."""
    given = types.float32 if width(kind.literal_value)[0] == 32 else types.float64

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        simd = Simd(builder, kind.literal_value)
        builder.store(args[2], builder.inttoptr(args[1], simd.scalar.as_pointer()), align=simd.size)
        return context.get_dummy_value()

    return types.void(kind, types.int64, given), generate


_LETTERS = {"int": "i", "float": "f", "Stream": "s"}


def layout_of(function: Any) -> str:
    """A letter for each argument of a kernel but its kind, by the annotations."""
    return "".join(_LETTERS[x] for x in list(function.__annotations__.values())[1:-1])


def signature(function: Any, kind: str) -> tuple[Any, ...]:
    """Types of a kernel's arguments.

    The cache on disk knows the age of the kernel's own file alone, so the kind's name carries a digest of all of them.
    """
    return types.literal(f"{kind} {DIGEST}"), *(cpu_team.TYPES[letter] for letter in layout_of(function))


def compiled(function: Any, kind: str) -> Kernel:
    """One kernel for one kind."""
    layout = layout_of(function)
    code = _compiled(function, kind, signature(function, kind))
    work = _compiled(cpu_team.work, layout, cpu_team.signature(layout))
    return Kernel(
        functools.partial(code.entry_point, ""),
        layout,
        code.library.get_pointer_to_function(code.fndesc.llvm_func_name),
        work.library.get_pointer_to_function(work.fndesc.llvm_cfunc_wrapper_name),
        (code, work),
    )


def _compiled(function: Any, variant: str, types_of: tuple[Any, ...]) -> Any:
    """Machine code and its addresses, from the cache on disk where there is one.

    Each variant has a name, and so an index in the cache, of its own: processes that add two to one index at the same
    time can give both the same file. A file with another variant in it is a KeyError.
    """
    named = FunctionType(function.__code__, function.__globals__, function.__name__)
    named.__qualname__ = f"{function.__qualname__}_{variant}"
    try:
        return njit(named, nogil=True, cache=True).get_compile_result(types.void(*types_of))
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError):  # no place or room, or a torn file
        return njit(named, nogil=True).get_compile_result(types.void(*types_of))
