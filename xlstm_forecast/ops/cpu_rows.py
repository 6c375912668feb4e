"""Operations on rows of numbers and small matrices in memory, from which the compiled kernels are put together."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from .blocks import block, bytes_of, intrinsic, product, split_of, vector_bytes
from .simd import I64, Simd, Value, registers, width

SUMS = 4  # side by side in a sum over a row
PIECE = 1024  # bytes of a row that are looked at at a time
ALL, LOWER, UPPER, TRIANGLE = 0, 1, 2, 3  # A whole; A lower or upper triangular; only the lower triangle is wanted


def _emit_matmul(
    simd: Simd, a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any, count: Any, to: Any, to_row: Any, *, columns: int,
    split: int, fresh: int = 0,
) -> None:  # fmt: skip
    """to += A B for four rows; fresh: to = A B."""
    beside = simd.size * simd.lanes
    places = [[simd.at(to, (r, to_row), (column, beside)) for column in range(columns)] for r in range(4)]
    start: list[list[Value | None]] = [[None if fresh else simd.load(x) for x in row] for row in places]
    total = product(simd, start, count, a, a_row, a_step, b, beside, b_step, split)
    for r in range(4):
        for column in range(columns):
            simd.store(total[r][column], places[r][column])


def _emit_narrow(
    simd: Simd, a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any, count: Any, to: Any, to_row: Any
) -> None:
    """to += A B for four rows and one vector of columns, each sum rounded as among two vectors."""
    split = split_of(simd, 4, 2, 2)
    _emit_matmul(simd, a, a_row, a_step, b, b_step, count, to, to_row, columns=1, split=split)


def over_row(simd: Simd, size: Any, body: Any) -> None:
    """body(byte offset) for every vector of a row."""
    step = ir.Constant(I64, simd.size * simd.lanes)
    with cgutils.for_range(simd.builder, simd.builder.udiv(size, step), intp=I64) as loop:
        body(simd.builder.mul(loop.index, step))


def _emit_scale(simd: Simd, source: Any, to: Any, factor: Any, size: Any) -> None:
    """to = factor * source over a row; factor: address of a number."""
    scale = simd.spread(factor)
    over_row(simd, size, lambda at: simd.store(simd.load(simd.at(source, at)) * scale, simd.at(to, at)))


def _emit_add(simd: Simd, source: Any, to: Any, factor: Any, size: Any) -> None:
    """to += factor * source over a row."""
    scale = simd.spread(factor)
    over_row(
        simd,
        size,
        lambda at: simd.store(simd.load(simd.at(to, at)) + simd.load(simd.at(source, at)) * scale, simd.at(to, at)),
    )


def _emit_clear(simd: Simd, row: Any, size: Any) -> None:
    """row = 0."""
    over_row(simd, size, lambda at: simd.store(0.0, simd.at(row, at)))


def _emit_turn(simd: Simd, source: Any, source_row: Any, to: Any, to_row: Any) -> None:
    """to = the transpose of a square of as many rows as lanes: in each stage, rows a power of 2 apart trade lanes."""
    rows = [simd.load(simd.at(source, (r, source_row))).value for r in range(simd.lanes)]
    step = 1
    while step < simd.lanes:
        upper = [k if k & step == 0 else simd.lanes + k - step for k in range(simd.lanes)]
        lower = [k + step if k & step == 0 else simd.lanes + k for k in range(simd.lanes)]
        masks = [ir.Constant(ir.VectorType(ir.IntType(32), simd.lanes), order) for order in (upper, lower)]
        for r in range(simd.lanes):
            if r & step == 0:
                pair = rows[r], rows[r + step]
                rows[r], rows[r + step] = (simd.builder.shuffle_vector(*pair, mask) for mask in masks)
        step *= 2
    for r, row in enumerate(rows):
        simd.store(Value(simd, row), simd.at(to, (r, to_row)))


def _emit_exp(simd: Simd, row: Any, size: Any) -> None:
    """row = exp(row), row <= 0."""
    over_row(simd, size, lambda at: simd.store(simd.exp(simd.load(simd.at(row, at))), simd.at(row, at)))


def _emit_log_sigmoid(simd: Simd, source: Any, to: Any, size: Any) -> None:
    """to = log sigmoid of a row."""

    def body(at: Any) -> None:
        x = simd.load(simd.at(source, at))
        simd.store(simd.pick("<", x, 0.0, x, 0.0) - simd.log1p(simd.exp(simd.negative_abs(x))), simd.at(to, at))

    over_row(simd, size, body)


_matmul_one = block(_emit_matmul, columns=1, split=4)
matmul_two = block(_emit_matmul, columns=2, split=2)
matmul_narrow = block(_emit_narrow)
_matmul_three = block(_emit_matmul, columns=3, split=1)
_matmul_four = block(_emit_matmul, columns=4, split=1)
_multiply_one = block(_emit_matmul, columns=1, split=4, fresh=1)
_multiply_two = block(_emit_matmul, columns=2, split=2, fresh=1)
_multiply_three = block(_emit_matmul, columns=3, split=1, fresh=1)
_multiply_four = block(_emit_matmul, columns=4, split=1, fresh=1)
scale = block(_emit_scale)
add = block(_emit_add)
exp = block(_emit_exp)
clear = block(_emit_clear)
_turn_square = block(_emit_turn)
log_sigmoid = block(_emit_log_sigmoid)


def _emit_sum(simd: Simd, size: Any, term: Any) -> Any:
    """Sum of term(byte offset) over a row, in a few sums at a time, which hide the latency of the addition."""
    builder, step = simd.builder, simd.size * simd.lanes
    sums = [cgutils.alloca_once_value(builder, simd.lift(0.0).value) for _ in range(SUMS)]
    blocks = builder.udiv(size, ir.Constant(I64, SUMS * step))

    def add_to(slot: Any, at: Any) -> None:
        builder.store((Value(simd, builder.load(slot)) + term(at)).value, slot)

    with cgutils.for_range(builder, blocks, intp=I64) as loop:
        for part, slot in enumerate(sums):
            add_to(slot, simd.at(ir.Constant(I64, part * step), (loop.index, SUMS * step)))
    done = builder.mul(blocks, ir.Constant(I64, SUMS * step))
    over_row(simd, builder.sub(size, done), lambda at: add_to(sums[0], builder.add(done, at)))
    total = Value(simd, builder.load(sums[0]))
    for slot in sums[1:]:
        total = total + Value(simd, builder.load(slot))
    return builder.extract_element(simd.total(total).value, ir.Constant(I64, 0))


@intrinsic(prefer_literal=True)
def dot(typingctx: Any, kind: Any, a: Any, b: Any, size: Any) -> Any:
    """Sum over a row of a * b."""
    result = types.float32 if width(kind.literal_value)[0] == 32 else types.float64

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        simd = Simd(builder, kind.literal_value)
        return _emit_sum(simd, args[3], lambda at: simd.load(simd.at(args[1], at)) * simd.load(simd.at(args[2], at)))

    return result(kind, types.int64, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def _size_of(typingctx: Any, kind: Any, row: Any, size: Any) -> Any:
    """Sum over a row of absolute values: 0 where all numbers are 0 and only there, for it cannot underflow."""
    result = types.float32 if width(kind.literal_value)[0] == 32 else types.float64

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        simd = Simd(builder, kind.literal_value)
        return _emit_sum(simd, args[2], lambda at: simd.abs(simd.load(simd.at(args[1], at))))

    return result(kind, types.int64, types.int64), generate


@njit
def filled(kind: Any, row: int, size: int) -> bool:
    """Whether any number of a row is not 0."""
    at = 0
    while at < size and _size_of(kind, row + at, min(PIECE, size - at)) == 0:  # most are told by their first numbers
        at += PIECE
    return at < size


@intrinsic(prefer_literal=True)
def _widest(typingctx: Any, kind: Any) -> Any:
    """Vectors of columns that registers hold sums of for four rows, beside a row of B and a number of A; at most 4."""
    bits, lanes = width(kind.literal_value)
    most = max(1, min(4, (registers(bits * lanes) - 1) // 5))
    return types.int64(kind), lambda context, builder, signature, args: ir.Constant(I64, most)


@njit
def _take(kind: Any, left: int) -> int:
    """How many of the vectors that are left of a row a product takes at once."""
    if _widest(kind) == 3:
        return 3 if left == 3 or left > 4 else min(left, 2)
    return 4 if left >= 4 else 2 if left >= 2 else 1


@njit
def matmul(
    kind: Any, shape: int, rows: int, a: int, a_row: int, a_step: int, b: int, b_step: int, count: int, to: int,
    to_row: int, size: int,
) -> None:  # fmt: skip
    """to += A B for `rows` rows, a multiple of 4. size: bytes of a row of B. shape: what is 0 or unwanted."""
    wide, number = vector_bytes(kind), bytes_of(kind)
    column = 0
    while column < size:
        take = _take(kind, (size - column) // wide)
        first = 0
        if shape == TRIANGLE:
            first = column // number // 4 * 4
        for r in range(first, rows, 4):
            start = r if shape == UPPER else 0
            some = min(count, r + 4) if shape == LOWER else count - start
            arguments = (
                a + r * a_row + start * a_step, a_row, a_step, b + column + start * b_step, b_step, some,
                to + r * to_row + column, to_row,
            )  # fmt: skip
            if take == 4:
                _matmul_four(kind, arguments)
            elif take == 3:
                _matmul_three(kind, arguments)
            elif take == 2:
                matmul_two(kind, arguments)
            else:
                _matmul_one(kind, arguments)
        column += take * wide


@njit
def multiply(
    kind: Any, rows: int, a: int, a_row: int, b: int, b_step: int, count: int, to: int, to_row: int, size: int
) -> None:  # fmt: skip
    """to = A B for `rows` rows, a multiple of 4, A's numbers side by side. size: bytes of a row of B."""
    wide, number = vector_bytes(kind), bytes_of(kind)
    column = 0
    while column < size:
        take = _take(kind, (size - column) // wide)
        for r in range(0, rows, 4):
            arguments = a + r * a_row, a_row, number, b + column, b_step, count, to + r * to_row + column, to_row
            if take == 4:
                _multiply_four(kind, arguments)
            elif take == 3:
                _multiply_three(kind, arguments)
            elif take == 2:
                _multiply_two(kind, arguments)
            else:
                _multiply_one(kind, arguments)
        column += take * wide


@njit
def turn(kind: Any, source: int, rows: int, columns: int, to: int) -> None:
    """to (columns, rows) = the transpose of source (rows, columns), both multiples of the lanes."""
    number, wide = bytes_of(kind), vector_bytes(kind)
    lanes = wide // number
    for r in range(0, rows, lanes):
        for column in range(0, columns, lanes):
            place = source + (r * columns + column) * number
            _turn_square(kind, (place, columns * number, to + (column * rows + r) * number, rows * number))
