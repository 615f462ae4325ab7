"""Parts of a run's body among the values: refused where the control plane would not start with them, and in words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controlplane.domain.defaults import parse_defaults
from controlplane.domain.errors import InvalidSpec
from controlplane.domain.fields import RESERVED_LABELS, RESERVED_PREFIXES
from controlplane.domain.spec import parse_spec
from tests.helm.rendered import refusal, text
from tools import chart
from tools.blocks import ROOT

RESERVED = (*sorted(RESERVED_LABELS), *(f"{prefix}/own" for prefix in sorted(RESERVED_PREFIXES)))
FREE = {"team": "lm", "kueue.example.com/own": "a", "app.kubernetes.io/name": "a", "job-name-of-mine": "a"}


def test_labels_that_the_control_plane_would_refuse_are_refused() -> None:
    labels = dict.fromkeys(RESERVED, "a")
    said = refusal({"runs": {"defaults": {"labels": labels}}, "test": {"spec": {"labels": labels}}})
    for label in RESERVED:
        for path in ("runs/defaults", "test/spec"):
            assert f"at '/{path}/labels/{label.replace('/', '~1')}': value must be 'left out, since TeraGPT" in said
        with pytest.raises(InvalidSpec):
            parse_defaults({"labels": {label: "a"}})
        with pytest.raises(InvalidSpec):
            parse_spec({"size": "tiny", "labels": {label: "a"}})
    assert "job-name-of-mine" in text({"runs": {"defaults": {"labels": FREE}}})
    assert text({"test": {"spec": {"size": "tiny", "labels": FREE}}}).count("job-name-of-mine") == 1
    parse_defaults({"labels": FREE})


@pytest.mark.parametrize("path", ["runs.defaults", "test.spec"])
@pytest.mark.parametrize(
    ("env", "told"),
    [
        ([{"name": "RANK", "value": "1"}], "TeraGPT sets RANK itself in every pod; leave it out"),
        ([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}], "A stands there twice; leave one of them out"),
        ([{"name": "A"}], "A needs value or secret_ref; give exactly one of them"),
    ],
    ids=["set by us", "twice", "without a value"],
)
def test_variables_that_no_run_may_have_are_refused(path: str, env: list[dict[str, str]], told: str) -> None:
    section, name = path.split(".")
    assert f"{path}.env: {told}" in refusal({section: {name: {"env": env}}})


def test_every_pattern_of_a_run_s_body_is_told_in_words() -> None:
    definitions = json.loads((ROOT / chart.SCHEMA).read_text("utf-8"))["$defs"]
    runs = {name: node for name, node in definitions.items() if name.startswith("run.")}
    assert len(runs) > 10
    assert not [*_bare(runs)]


def test_a_key_that_no_secret_has_is_refused_in_words() -> None:
    env = [{"name": "A", "secret_ref": {"name": "b", "key": "..c"}}, {"name": "B", "value": "a\0b"}]
    said = refusal({"auth": {"existingSecretKey": "..a"}, "runs": {"defaults": {"env": env}}})
    key = "value must be 'a key of a Secret: letters, digits, dashes, dots and underscores, without two dots at the"
    assert f"at '/auth/existingSecretKey': {key}" in said
    assert f"at '/runs/defaults/env/0/secret_ref/key': {key}" in said
    assert "at '/runs/defaults/env/1/value': value must be 'text without NUL'" in said


def _bare(node: Any) -> list[str]:
    """The patterns that would be shown as they are, since no words stand beside them."""
    if isinstance(node, list):
        return [one for part in node for one in _bare(part)]
    if not isinstance(node, dict):
        return []
    mine = [node["pattern"]] if isinstance(node.get("pattern"), str) else []
    worded = "if" in node and "const" in node.get("then", {})
    return mine + [one for key, part in node.items() if not (worded and key == "if") for one in _bare(part)]
