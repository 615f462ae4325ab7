"""Bills of materials of a folder and a table; tests/cluster/test_controlplane_image.py looks at an image's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tools import sbom

TABLE = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u13
Description: GNU C Library
 shared: libraries

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1.0
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site-packages"
    for name, more in {
        "Fast_API": "License-Expression: MIT\nRequires-Dist: starlette>=1; python_version > '3'\nRequires-Dist: absent",
        "starlette": "License: BSD 3 clauses\n of a page: long",
    }.items():
        info = folder / f"{name}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.2\n{more}\n")
    return folder


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    table = tmp_path / "status"
    table.write_text(TABLE)
    return table


def test_a_bill_names_packages_and_distributions_with_what_they_need(site: Path, packages: Path) -> None:
    made = sbom.bill("teragpt/controlplane", "0.1.0", site, packages)
    assert made["metadata"]["component"]["name"] == "teragpt/controlplane"
    by_ref = {each["bom-ref"]: each for each in made["components"]}
    assert by_ref.keys() == {
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u13?arch=amd64",
        "pkg:pypi/fast-api@1.2",
        "pkg:pypi/starlette@1.2",
    }
    assert by_ref["pkg:pypi/fast-api@1.2"]["licenses"] == [{"expression": "MIT"}]
    needed = {each["ref"]: each["dependsOn"] for each in made["dependencies"]}
    assert needed["pkg:pypi/fast-api@1.2"] == ["pkg:pypi/starlette@1.2"]
    assert set(needed["teragpt/controlplane"]) == by_ref.keys()


def test_two_bills_are_the_same_and_another_version_is_another_bill(site: Path, packages: Path) -> None:
    first = sbom.bill("image", "1", site, packages)
    assert sbom.bill("image", "1", site, packages) == first
    packages.write_text(TABLE.replace("2.36", "2.37"))
    assert sbom.bill("image", "1", site, packages)["serialNumber"] != first["serialNumber"]


def test_it_runs_by_itself_as_an_image_runs_it() -> None:
    here = Path(sys.prefix) / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    command = [sys.executable, "-I", sbom.__file__, "here", "1", str(here)]
    told = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert "fastapi" in {each["name"] for each in json.loads(told)["components"]}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(told) is None
