"""How loops are compiled: the decorators of all kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., Any])


def kernel(function: _Function) -> _Function:
    """Compile without the GIL and keep the machine code on disk; numba has no type stubs, so the type is kept here."""
    return cast(_Function, njit(nogil=True, cache=True)(function))


def part_of_kernel(function: _Function) -> _Function:
    """Put into the loops that call it: a real call in the innermost loop would cost more than what it does."""
    return cast(_Function, njit(nogil=True, inline="always")(function))
