"""The control plane's image from the inside: what it is made of, how large it is, and that two builds are the same.

And the trainer's code layer, whose libraries tests/cluster/test_image.py looks at.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.cluster import images
from tests.cluster.layout import CHECKOUT, HOME, IMAGES
from tools import lock, sbom

pytestmark = pytest.mark.timeout(900)  # two builds from nothing, each of which a busy machine takes minutes for
LARGEST_MB = 250  # over its base
SOURCE = (
    "Dockerfile",
    ".dockerignore",
    "README.md",
    "LICENSE",
    "pyproject.toml",
    "constraints.txt",
    "deploy/locks",
    "controlplane",
    "teragpt",
    "tools/sbom.py",
)
UNCHECKED = b"\x01\x00\x00\x00"  # a .pyc's flags: by hash, and never compared with its source
LOOK = """
set -eu
container=$(buildah $STORE from --pull-never "$1")
folder=$(buildah $STORE mount "$container")
trap 'buildah $STORE umount "$container" >/dev/null; buildah $STORE rm "$container" >/dev/null' EXIT
cd "$folder"
"""


def built(source: Path, target: str = "controlplane", *options: str) -> str:
    """The id of a target's image with every date set to the epoch; with `--no-cache` built from nothing."""
    with tempfile.TemporaryDirectory(dir=images._folder()) as scratch:
        identity = Path(scratch) / "id"
        images._buildah(
            *("build", "--layers", "--force-rm", "--network=host", "--timestamp=0", f"--target={target}", *options),
            *(f"--build-arg=BASE={images._base()}", "--build-arg=REVISION=abc123", f"--iidfile={identity}"),
            *(f"--volume={images.CERTIFICATES}:{images.CERTIFICATES}:ro", *images._secrets(Path(scratch))),
            *("--file", str(source / "Dockerfile"), str(source)),
        )
        return identity.read_text().removeprefix("sha256:")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This checkout as it now is, less what the build leaves out."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SOURCE:
        made = folder / name
        made.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy)(CHECKOUT / name, made)
    return folder


@pytest.fixture(scope="module")
def image(source: Path) -> str:
    return built(source, "controlplane", "--no-cache")


def inside(image: str, script: str) -> str:
    """What a shell script prints in the image's root folder, beside and not within it."""
    store = f"--root {IMAGES / 'buildah'} --runroot {HOME / 'run-buildah'} --storage-driver overlay"
    command = ["unshare", "--mount", "bash", "-c", LOOK + script, "bash", image]
    done = subprocess.run(
        command, env={"STORE": store, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, capture_output=True, check=True
    )
    return done.stdout.decode()


def facts(image: str) -> dict[str, Any]:
    inspected: dict[str, Any] = json.loads(images._buildah("inspect", "--type=image", image))["OCIv1"]
    return inspected


def distributions(image: str) -> set[str]:
    names = inside(image, "ls -d opt/teragpt/lib/python3*/site-packages/*.dist-info").split()
    return {sbom.canonical(Path(name).name.removesuffix(".dist-info").partition("-")[0]) for name in names}


def test_two_builds_give_the_same_bytes(image: str, source: Path) -> None:
    assert built(source, "controlplane", "--no-cache") == image


def test_two_builds_give_the_trainer_the_same_code_layer(source: Path) -> None:
    first = built(source, "code", "--no-cache")
    for path in [source / "teragpt", *(source / "teragpt").rglob("*")]:
        os.utime(path, (1, 1))
    assert built(source, "code", "--no-cache") == first
    assert len(facts(first)["rootfs"]["diff_ids"]) > 1


def test_its_bill_of_materials_names_what_it_holds(source: Path, image: str, tmp_path: Path) -> None:
    built(source, "controlplane-sbom", "--build-arg=VERSION=0.1.0", f"--output={tmp_path}")
    told = (tmp_path / "controlplane.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(told) is None
    components = json.loads(told)["components"]
    python = {each["name"] for each in components if each["purl"].startswith("pkg:pypi/")}
    assert python == distributions(image)
    debian = {each["name"] for each in components if each["purl"].startswith("pkg:deb/")}
    assert debian >= {"ca-certificates", "libc6", "python3"}


def test_it_says_what_it_is_and_runs_as_a_number(image: str) -> None:
    config = facts(image)["config"]
    labels = config["Labels"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["python", "-m", "controlplane.server"]
    assert labels["org.opencontainers.image.revision"] == "abc123"
    assert labels["org.opencontainers.image.title"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_it_is_small(image: str) -> None:
    kib = int(inside(image, "du --summarize --block-size=1K opt/teragpt").split()[0])
    print(f"{kib / 1024:.0f} MiB over the base")
    assert kib * 1024 < LARGEST_MB * 1_000_000


def test_it_holds_the_locked_distributions_and_nothing_else(image: str) -> None:
    assert distributions(image) == {*(sbom.canonical(name) for name in lock.locked("controlplane")), "teragpt"}


def test_its_bytecode_is_whole_and_never_compared_with_its_source(image: str) -> None:
    package = "opt/teragpt/lib/python3*/site-packages/controlplane"
    sources, compiled = (
        inside(image, f"find {package} -name '{pattern}' | wc -l").strip() for pattern in ("*.py", "*.pyc")
    )
    flags = inside(
        image, "for file in $(find opt/teragpt -name '*.pyc'); do head -c 8 $file | tail -c 4 | od -An -tx1; done"
    )
    assert sources == compiled
    assert set(flags.split("\n")) - {""} == {" " + UNCHECKED.hex(" ")}


def test_no_cache_key_or_index_is_left_in_it(image: str) -> None:
    assert not inside(image, "find root home tmp var/cache/apt var/lib/apt/lists -type f -size +0 ! -name '.*'")
    secrets = inside(
        image, "grep -rlE 'index-url|BEGIN [A-Z ]*PRIVATE KEY' etc opt/teragpt/bin opt/teragpt/pyvenv.cfg || true"
    )
    assert not secrets
    history = json.dumps(facts(image)["history"])
    assert "index-url" not in history
