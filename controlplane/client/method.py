"""How an operation becomes a method of a client: one line there, its parameters, types and words from `calls`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, Self, TypeVar, overload

P = ParamSpec("P")
C = TypeVar("C")
T = TypeVar("T")


class Method(Generic[C, P, T]):
    """What the client `carry`s over when called with what `build` takes; `build` returns what is to be carried."""

    def __init__(self, build: Callable[P, Any], carry: Callable[[C, Any], T]) -> None:
        self.build, self.carry = build, carry
        self.__doc__ = build.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: C, owner: type) -> Callable[P, T]: ...
    def __get__(self, client: C | None, owner: type) -> Self | Callable[P, T]:
        """The method bound to `client`; of the class itself, this."""
        if client is None:
            return self
        bound = client

        def method(*args: P.args, **kwargs: P.kwargs) -> T:
            return self.carry(bound, self.build(*args, **kwargs))

        method.__name__, method.__doc__ = self.build.__name__, self.__doc__
        return method
