from __future__ import annotations

import inspect

from controlplane.domain import errors


def test_the_tree_at_the_top_of_the_file_is_the_tree_of_the_classes() -> None:
    assert errors.__doc__
    drawn = [line for line in errors.__doc__.splitlines() if "──" in line or line.strip() == "ControlPlaneError"]
    depths = {
        line.replace("│", " ").lstrip(" ├└─").split()[0]: (len(line) - len(line.lstrip(" │├└─"))) // 4 for line in drawn
    }
    classes = {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, errors.ControlPlaneError)
    }
    assert depths.keys() == classes.keys()
    roots = depths["ControlPlaneError"]
    for name, kind in classes.items():
        assert len(kind.__mro__) - len(errors.ControlPlaneError.__mro__) == depths[name] - roots, name


def test_codes_are_unique() -> None:
    codes = [
        kind.code
        for kind in vars(errors).values()
        if inspect.isclass(kind) and issubclass(kind, errors.ControlPlaneError)
    ]
    assert len(codes) == len(set(codes)) > 10
