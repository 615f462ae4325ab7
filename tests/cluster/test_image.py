"""The trainer's image as pods see it."""

from __future__ import annotations

import json

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.cluster.conftest import Cluster, Namespace
from tests.cluster.layout import CHECKOUT

CHECKS = """
import importlib.util, os, pathlib, sys
import teragpt.train
assert os.getuid() == 12345, os.getuid()
try:
    pathlib.Path("/opt/teragpt/new").write_text("")
except OSError:
    pass
else:
    sys.exit("the root file system can be written")
for name in ("teragpt.train", "torch", "transformers", "s3fs"):
    cached = importlib.util.find_spec(name).cached
    flags = int.from_bytes(pathlib.Path(cached).read_bytes()[4:8], "little")
    assert flags == 1, f"{cached}: flags {flags}: not an unchecked hash"
for path in ("/etc/pip.conf", "/etc/uv/uv.toml", "/root/.config/pip/pip.conf", "/root/.pip/pip.conf"):
    found = pathlib.Path(path)
    assert not os.access(path, os.R_OK) or not found.read_text(), f"{path} is in a layer"
print("good")
"""


def test_it_runs_read_only_as_any_user_with_bytecode_that_is_never_checked(
    cluster: Cluster, namespace: Namespace
) -> None:
    asks = {"runAsUser": 12345, "runAsGroup": 12345}
    namespace.start("image", "python", "-c", CHECKS, image=cluster.image, security=asks)
    assert namespace.output("image") == "good\n"


def test_without_a_command_it_is_the_launcher_and_says_what_it_lacks(cluster: Cluster, namespace: Namespace) -> None:
    namespace.start("image", image=cluster.image)
    namespace.wait("pod/image", "jsonpath={.status.phase}=Failed")
    assert "the following arguments are required: training_script" in namespace.kubectl("logs", "image")


def test_its_bill_of_materials_names_what_it_holds(cluster: Cluster, namespace: Namespace) -> None:
    """Told by what the Dockerfile's target `trainer-sbom` runs in it."""
    told = 'exec python -c "$0" teragpt/trainer 0.1.0 /opt/teragpt/lib/python3*/site-packages'
    namespace.start("image", "sh", "-c", told, (CHECKOUT / "tools/sbom.py").read_text(), image=cluster.image)
    bill = namespace.output("image")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None
    named = {each["purl"].partition("@")[0] for each in json.loads(bill)["components"]}
    assert named >= {"pkg:pypi/torch", "pkg:pypi/transformers", "pkg:pypi/s3fs", "pkg:deb/debian/libibverbs1"}
