"""An image's bill of materials as CycloneDX, written from inside it: its Debian packages and Python distributions.

`python sbom.py NAME VERSION SITE-PACKAGES` prints it; the Dockerfile's targets `controlplane-sbom` and `trainer-sbom`
run it. It needs Python alone and knows no clock: two bills of the same image are the same bytes. Format:
https://cyclonedx.org/docs/1.6/json/.
"""

from __future__ import annotations

import email
import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import NAMESPACE_URL, uuid5

PACKAGES = Path("/var/lib/dpkg/status")
INSTALLED = "install ok installed"
NEEDED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Component = dict[str, Any]


def bill(name: str, version: str, site: Path, packages: Path = PACKAGES) -> dict[str, Any]:
    """Everything in the image `name`: what dpkg's table lists and what lies in `site`. Raises OSError without one."""
    found = {canonical(one.name): one for one in distributions(path=[str(site)])}
    python = {key: of_python(one) for key, one in sorted(found.items())}
    components = [*of_debian(packages.read_text("utf-8")), *python.values()]
    every = [each["bom-ref"] for each in components]
    image = {"type": "container", "bom-ref": name, "name": name, "version": version}
    needs = [
        {
            "ref": python[key]["bom-ref"],
            "dependsOn": [python[each]["bom-ref"] for each in needed(one) if each in python],
        }
        for key, one in sorted(found.items())
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid5(NAMESPACE_URL, "\n".join(every)).urn,
        "version": 1,
        "metadata": {"component": image},
        "components": components,
        "dependencies": [{"ref": name, "dependsOn": every}, *needs],
    }


def of_python(one: Distribution) -> Component:
    """A Python distribution, under the licence that it declares."""
    name = canonical(one.name)
    made = component(name, one.version, f"pkg:pypi/{name}@{quote(one.version)}")
    if "License-Expression" in one.metadata:
        return made | {"licenses": [{"expression": one.metadata["License-Expression"]}]}
    licence = one.metadata["License"].strip() if "License" in one.metadata else ""
    return made | ({"licenses": [{"license": {"name": licence}}]} if licence and "\n" not in licence else {})


def of_debian(table: str) -> Iterator[Component]:
    """The packages that are installed, by dpkg's table."""
    for paragraph in table.strip().split("\n\n"):
        fields = {key: str(value) for key, value in email.message_from_string(paragraph).items()}
        if fields["Status"] == INSTALLED:
            name, version = fields["Package"], fields["Version"]
            yield component(name, version, f"pkg:deb/debian/{name}@{quote(version)}?arch={fields['Architecture']}")


def component(name: str, version: str, purl: str) -> Component:
    """A library of the image; its package URL is also its name in the bill."""
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def needed(one: Distribution) -> list[str]:
    """The names of the distributions that it may ask for, under any marker."""
    return sorted({canonical(match[0]) for text in one.requires or () if (match := NEEDED.match(text))})


def canonical(name: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    print(json.dumps(bill(sys.argv[1], sys.argv[2], Path(sys.argv[3])), indent=1))
