"""Types of columns that hold the same values on SQLite and on Postgres.

Postgres is stricter than what comes from a cluster or a user: its texts hold no NUL, its JSON neither NaN nor half a
surrogate pair, and a text beyond its length is an error. So texts there have any length, and JSON is text too.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import JSON, Dialect, String, Text, TypeDecorator
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from controlplane.domain.names import compact

POSTGRES = "postgresql"


class _Clean(TypeDecorator[str]):
    """A text with U+FFFD where a NUL was."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """As it is stored."""
        del dialect
        return None if value is None else value.replace("\0", "\ufffd")


class _JsonText(TypeDecorator[Any]):
    """A JSON value in a text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """As it is stored."""
        del dialect
        return None if value is None else compact(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """As it was given."""
        del dialect
        return None if value is None else json.loads(value)


def words(length: int = 255) -> String:
    """A text of one line."""
    return String(length).with_variant(_Clean(), POSTGRES)


def prose() -> Text:
    """A text of any length."""
    return Text().with_variant(_Clean(), POSTGRES)


def json_value() -> JSON:
    """Anything that JSON can say; None is a null of the database's own."""
    return JSON(none_as_null=True).with_variant(_JsonText(), POSTGRES)


class Seen(FunctionElement[Any]):
    """A column whose own index does not lead a search: its value is seen in the rows that another one leads to.

    Without statistics, SQLite takes any index for a better one than that which holds the order that was asked for.
    """

    inherit_cache = True


@compiles(Seen)
def _plain(element: Seen, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(element.clauses, **options)


@compiles(Seen, "sqlite")
def _signed(element: Seen, compiler: SQLCompiler, **options: Any) -> str:
    return f"+{compiler.process(element.clauses, **options)}"
