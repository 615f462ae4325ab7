"""Many rows at once: new ones, given to the driver as they are, and lists of values by which others are asked for.

SQLAlchemy would make a statement anew for each number of them, which costs more than the rows do. The statements and
the columns' types are SQLAlchemy's, found once for each set of columns. It knows no table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from sqlalchemy import BigInteger, BindParameter, Connection, Dialect, FromClause, String, Table, bindparam, insert
from sqlalchemy.types import TypeEngine

Bind = Callable[[Any], Any] | None
T = TypeVar("T", str, int)
TYPES: dict[type, TypeEngine[Any]] = {str: String(), int: BigInteger()}


def add_rows(connection: Connection, table: FromClause, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, which all give the same columns, with nothing left to a default of the mapper's."""
    assert isinstance(table, Table)
    statement, binds = _prepared(table, tuple(rows[0]), connection.dialect)
    values = ([bind(row[name]) if bind else row[name] for name, bind in binds] for row in rows)
    if connection.dialect.positional:
        connection.exec_driver_sql(statement, [tuple(one) for one in values])
    else:
        names = [name for name, _ in binds]
        connection.exec_driver_sql(statement, [dict(zip(names, one, strict=True)) for one in values])


@lru_cache(maxsize=64)
def _prepared(table: Table, names: tuple[str, ...], dialect: Dialect) -> tuple[str, list[tuple[str, Bind]]]:
    """The statement, and its columns in order, each with what makes a value the driver's."""
    left = [column.name for column in table.columns if column.default is not None and column.name not in names]
    assert not left, f"{table.name}: {', '.join(left)} must be given"
    compiled = insert(table).compile(dialect=dialect, column_keys=names)
    order = getattr(compiled, "positiontup", None) or names
    return str(compiled), [(name, _bind(table, name, dialect)) for name in order]


def _bind(table: Table, name: str, dialect: Dialect) -> Bind:
    bind: Bind = table.columns[name].type.dialect_impl(dialect).bind_processor(dialect)
    return bind


def several(name: str, count: int, kind: type[T]) -> list[BindParameter[T]]:
    """Parameters of their own for a list of so many: SQLAlchemy would write a list's anew each time."""
    return [bindparam(f"{name}{at}", type_=TYPES[kind]) for at in range(count)]


def given(**lists: Sequence[str | int]) -> tuple[int, dict[str, str | int]]:
    """How many parameters a statement needs for these lists, and their values: few statements serve all lengths."""
    count = 1 << (max(map(len, lists.values())) - 1).bit_length()
    return count, {f"{name}{at}": one[at % len(one)] for name, one in lists.items() for at in range(count)}
