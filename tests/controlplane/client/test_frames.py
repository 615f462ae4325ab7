from __future__ import annotations

from typing import Any

import pandas as pd
import polars as pl
import pytest

from controlplane.client import frames
from controlplane.client.frames import frame_of

POINTS: list[dict[str, Any]] = [{"step": 1, "loss": 2}, {"step": 2, "loss": 1.5, "val_loss": 1.75}]


def test_a_curve_is_a_frame_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(frame_of(POINTS), pd.DataFrame)
    monkeypatch.setattr(frames, "find_spec", lambda name: name == "polars" or None)
    assert isinstance(frame_of(POINTS), pl.DataFrame)
    monkeypatch.setattr(frames, "find_spec", lambda _: None)
    assert frame_of(POINTS) == POINTS


def test_a_value_that_a_point_lacks_is_missing() -> None:
    assert frame_of(POINTS, "pandas")["val_loss"].isna().tolist() == [True, False]
    assert frame_of(POINTS, "polars")["val_loss"].to_list() == [None, 1.75]
    assert frame_of(POINTS, "polars")["loss"].to_list() == [2.0, 1.5]


def test_no_points_are_an_empty_table() -> None:
    assert len(frame_of([], "pandas")) == len(frame_of([], "polars")) == len(frame_of([], "rows")) == 0
