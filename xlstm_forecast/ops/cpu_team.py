"""What a thread does of a parallel call: it takes rows of a table of arguments, one after the other, and calls a kernel
with each. All of it is machine code: a thread of torch's team knows nothing of Python, and to make it known, at every
call, costs more than many a kernel."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

from .simd import I64

intrinsic: Any = extending.intrinsic
TYPES = {"i": types.int64, "f": types.float64, "s": types.UniTuple(types.int64, 3)}  # by their letters in a layout


@intrinsic
def _take(typingctx: Any, address: Any) -> Any:
    """The integer at an address, which is one more for whoever asks next, in whatever thread."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], I64.as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(I64, 1), "monotonic")

    return types.int64(types.int64), generate


@intrinsic
def _word(typingctx: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], I64.as_pointer()))

    return types.int64(types.int64), generate


@intrinsic
def _put_word(typingctx: Any, address: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], I64.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def _call(typingctx: Any, layout: Any, function: Any, row: Any) -> Any:
    """Call the kernel at an address with the arguments that lie in a row, eight bytes each; 1 where it failed."""
    kinds = [TYPES[letter] for letter in layout.literal_value]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = iter(range(0, 8 * 3 * len(kinds), 8))

        def load(form: Any) -> Any:
            address = builder.add(args[2], ir.Constant(I64, next(place)))
            return builder.load(builder.inttoptr(address, form.as_pointer()))

        given = [context.get_dummy_value()]  # of the kernel's kind, which is its type alone
        for kind in kinds:
            if kind is TYPES["s"]:
                given.append(cgutils.pack_array(builder, [load(I64) for _ in range(3)]))
            else:
                given.append(load(ir.DoubleType() if kind is types.float64 else I64))
        taken = [types.literal("kind"), *kinds]
        form = context.call_conv.get_function_type(types.none, taken)
        code = builder.inttoptr(args[1], form.as_pointer())
        status, _ = context.call_conv.call_function(builder, code, types.none, taken, given)
        return builder.zext(status.is_error, I64)

    return types.int64(layout, types.int64, types.int64), generate


def work(desk: int, layout: Any) -> None:
    """Take rows and call the kernel until none is left; `threads.spread` tells what lies on the desk."""
    count, table, width, kernel = _word(desk + 8), _word(desk + 16), _word(desk + 24), _word(desk + 32)
    number = _take(desk)
    while number < count:
        if _call(layout, kernel, table + number * width) != 0:
            _put_word(desk + 40, 1)
        number = _take(desk)


def signature(layout: str) -> tuple[Any, ...]:
    """Types of the arguments of `work` for kernels of that layout."""
    return types.int64, types.literal(layout)
