"""Values that say by whom, from where and under which path the API is reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controlplane.options import SettingsError
from controlplane.settings import leaves
from tests.helm.rendered import notes, refusal, text
from tools import chart
from tools.blocks import ROOT

NETWORKS = {  # and what a wrong one could have meant, or what is allowed
    "10.0.0.0/8": "",
    "10.128.0.0/9": "",
    "10.0.0.7": "",
    "0.0.0.0/0": "",
    "fd00::/64": "",
    "FD00:abcc::/31": "",
    "::1/128": "",
    "1:2:3:4:5:6:7::/112": "",
    "10.0.0.1/8": ", where bits of a host are set; allowed: 10.0.0.0/8, or 10.0.0.1 alone",
    "10.64.0.0/9": ", where bits of a host are set; allowed: 10.0.0.0/9, or 10.64.0.0 alone",
    "fd00::8001/113": ", where bits of a host are set; allowed: fd00:0:0:0:0:0:0:8000/113, or fd00::8001 alone",
    "1:2:3/64": "; allowed: networks such as 10.0.0.0/24 or fd00::/64",
    "1::2::3/64": "; allowed: networks such as 10.0.0.0/24 or fd00::/64",
    ":1:2:3/16": "; allowed: networks such as 10.0.0.0/24 or fd00::/64",
}
OTHER = [  # values of a mode that is not in force
    ("tokens", "existingSecret", "a"),
    ("tokens", "existingSecretKey", "a"),
    ("oidc", "issuer", "https://id.example.com"),
    ("oidc", "audience", "a"),
    ("oidc", "groups", ["a"]),
    ("oidc", "algorithms", ["ES256"]),
    ("oidc", "clockSkewS", 31),
    ("proxy", "networks", ["10.0.0.0/8"]),
    ("proxy", "userHeader", "X-User"),
]
INGRESS = {"enabled": True, "hosts": ["a.example.com"]}
REWRITE = {"nginx.ingress.kubernetes.io/rewrite-target": "/$2"}
PATHS: list[tuple[dict[str, Any], str]] = [
    ({"path": "/gpt"}, "ingress.path: got /gpt, and the API's own paths begin at /; set the annotation by which your"),
    (
        {"path": "/gpt(/|$)(.*)", "annotations": REWRITE},
        "ingress.path: got /gpt(/|$)(.*) with ingress.pathType Prefix, which takes it literally; allowed: ingress.path",
    ),
]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_proxy_s_network_is_taken_as_the_control_plane_takes_it(network: str) -> None:
    reader = next(leaf for leaf in leaves() if leaf.variable == "TERAGPT_PROXY_NETWORKS")
    values = {"auth": {"mode": "proxy", "proxy": {"networks": ["10.1.0.0/16", network]}}}
    if NETWORKS[network]:
        assert f"auth.proxy.networks: got {network}{NETWORKS[network]}" in refusal(values)
        with pytest.raises(SettingsError):
            reader.read(network, "networks")
    else:
        assert f'"10.1.0.0/16,{network}"' in text(values)
        reader.read(network, "networks")


@pytest.mark.parametrize(("mode", "name", "value"), OTHER, ids=str)
def test_what_belongs_to_another_mode_is_refused(mode: str, name: str, value: object) -> None:
    said = refusal({"auth": {mode: {name: value}}})
    assert f"at '/auth/{mode}/{name}': value must be 'left out, since auth.mode is not {mode}'" in said


def test_defaults_of_another_mode_may_stand_there_too() -> None:
    whole = chart.source(ROOT)["properties"]["auth"]["properties"]
    given = {mode: {name: node["default"] for name, node in whole[mode]["properties"].items()} for mode, _, _ in OTHER}
    assert text({"auth": given}) == text()


@pytest.mark.parametrize(("ingress", "sentence"), PATHS, ids=["nothing-rewrites-it", "regex-as-prefix"])
def test_a_path_in_front_of_the_api_must_be_taken_away_again(ingress: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal({"ingress": INGRESS | ingress})


def test_the_root_as_cloud_load_balancers_write_it_needs_no_annotation(tmp_path: Path) -> None:
    ingress = INGRESS | {"path": "/*", "pathType": "ImplementationSpecific"}
    assert 'path: "/*"' in text({"ingress": ingress})
    assert "URL=http://a.example.com\n" in notes(tmp_path, {"ingress": ingress})
    assert "ingress.pathType Prefix, which takes it literally" in refusal({"ingress": ingress | {"pathType": "Prefix"}})


def test_notes_name_what_a_path_by_regular_expression_begins_with(tmp_path: Path) -> None:
    path = {"path": "/gpt(/|$)(.*)", "pathType": "ImplementationSpecific", "annotations": REWRITE}
    values = {"ingress": INGRESS | path}
    assert 'path: "/gpt(/|$)(.*)"' in text(values)
    assert "URL=http://a.example.com/gpt\n" in notes(tmp_path, values)
