"""Many new rows of one table at once, given to the driver as they are: SQLAlchemy's statements cost more than they do.

The statement and the columns' types are SQLAlchemy's, found once for each set of columns. It knows no table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Dialect, FromClause, Table, insert

Bind = Callable[[Any], Any] | None


def add_rows(connection: Connection, table: FromClause, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, which all give the same columns, with nothing left to a default of the mapper's."""
    assert isinstance(table, Table)
    statement, binds = _prepared(table, tuple(rows[0]), connection.dialect)
    values = [{name: bind(row[name]) if bind else row[name] for name, bind in binds} for row in rows]
    connection.exec_driver_sql(
        statement, [tuple(one.values()) for one in values] if connection.dialect.positional else values
    )


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
