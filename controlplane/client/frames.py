"""A curve as a table of whichever library is installed. None is imported before one is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

from controlplane.replies import Point

Library = Literal["pandas", "polars", "rows"]


def frame_of(points: Sequence[Point], library: Library | None = None) -> Any:
    """A row a point, a column a value: a frame of pandas, else of polars, else the rows, or of the library asked for.

    A value that a point lacks is NaN in pandas and null in polars. Raises ImportError where `library` is missing.
    """
    chosen = library or next((name for name in ("pandas", "polars") if find_spec(name)), "rows")
    if chosen == "pandas":
        import pandas as pd

        return pd.DataFrame(list(points))
    if chosen == "polars":
        import polars as pl

        return pl.from_dicts(list(points), infer_schema_length=None) if points else pl.DataFrame()
    return list(points)
