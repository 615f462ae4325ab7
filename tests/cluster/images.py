"""The images that the cluster's pods run, built with buildah and pushed to the registry on the node's loopback.

A layer is built, pushed and pulled once: what changes from day to day is the code layer of the trainer's image.
"""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tests.cluster import programs
from tests.cluster.layout import BIN, CHECKOUT, HOME, IMAGES, REGISTRY, REGISTRY_PORT, Failed
from tests.cluster.supervisor import accepts

SUITE = "bookworm"
CERTIFICATES = "/etc/ssl/certs"
START_S = 20.0
SERVE = r"""#!/bin/sh
# A database `teragpt` of the user `database`, whose password is in PASSWORD.
set -eu
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
if [ ! -e /data/db ]; then
    printf '%s' "$PASSWORD" >/tmp/password
    initdb --pgdata=/data/db --encoding=UTF8 --locale=C.UTF-8 --no-sync \
        --username=database --pwfile=/tmp/password --auth=scram-sha-256
    echo 'host all all all scram-sha-256' >>/data/db/pg_hba.conf
    echo 'CREATE DATABASE teragpt' | postgres --single -D /data/db postgres
fi
exec postgres -D /data/db -h 0.0.0.0 -k /tmp -c fsync=off
"""
BREAK = """# adds a migration that fails to the control plane's own
from controlplane.store.migrate import FOLDER, newest_revision

text = f"revision = '9999'\\ndown_revision = {newest_revision()!r}\\nbranch_labels = depends_on = None\\n\\n\\n"
target = FOLDER / "versions/9999_broken.py"
target.write_text(f"{text}def upgrade() -> None:\\n    raise ValueError('no such luck')\\n")
target.chmod(0o644)
"""
ROOM = 16 << 30  # bytes: the trainer's libraries in three places while they move, and what is unpacked of them


@dataclass(frozen=True)
class Small:
    """An image of static programs and nothing else. `paths` are their places in it."""

    name: str
    paths: dict[str, str]
    busybox: bool = False  # a shell and the usual commands too

    @property
    def reference(self) -> str:
        stamp = sha256(
            repr((self.paths, self.busybox, *(programs.HOME_OF[each].place().name for each in self.paths))).encode()
        )
        return f"{REGISTRY}/cluster/{self.name}:{stamp.hexdigest()[:12]}"


PAUSE = Small("pause", {"pause": "/pause"})
COREDNS = Small("coredns", {"coredns": "/coredns"})
PROVISIONER = Small("local-path-provisioner", {"local-path-provisioner": "/usr/bin/local-path-provisioner"})
SHELL = Small("shell", {"nslookup": "/usr/bin/nslookup"}, busybox=True)
OPERATOR = Small("training-operator", {"training-operator": "/manager"})
KWOK = Small("kwok", {"kwok": "/usr/bin/kwok"})
JOBSET = Small("jobset", {"jobset": "/manager"})
TRAINER_V2 = Small("trainer-controller-manager", {"trainer-controller-manager": "/manager"})


def provide(*images: Small) -> None:
    """Have small images in the registry's storage, where they are pulled from."""
    missing = [image for image in images if not _stored(image.reference)]
    if not missing:
        return
    programs.provide(name for image in missing for name in image.paths)
    with registry() as network:
        for image in missing:
            _build_small(image)
            _push(image.reference, network)


def make_room() -> None:
    """Where the disk has become short of room for new layers, forget all of them. For when none is in use."""
    if shutil.disk_usage(_folder()).free < ROOM:
        print(f"cluster: less than {ROOM >> 30} GiB are free: the images are made anew", flush=True)
        shutil.rmtree(IMAGES)


def trainer() -> str:
    """Build the Dockerfile's trainer target from this checkout, push it, and return its reference."""
    return build("trainer")


def build(target: str) -> str:
    """One of the Dockerfile's targets, pushed. The tag is the image's own digest: another content, another name."""
    with tempfile.TemporaryDirectory(dir=_folder()) as scratch:
        identity = Path(scratch) / "id"
        _buildah(
            *("build", "--layers", "--force-rm", "--network=host", f"--target={target}", f"--build-arg=BASE={_base()}"),
            *(f"--volume={CERTIFICATES}:{CERTIFICATES}:ro", f"--iidfile={identity}", *_secrets(Path(scratch))),
            *("--file", str(CHECKOUT / "Dockerfile"), str(CHECKOUT)),
        )
        image = identity.read_text().removeprefix("sha256:")
    reference = f"{REGISTRY}/teragpt/{target}:{image[:12]}"
    if not _stored(reference):
        _buildah("tag", image, reference)
        with registry() as network:
            _push(reference, network)
    return reference


def postgres() -> str:
    """Debian's Postgres, pushed; its user is 10001, as restricted pods' is. Its data are in /data."""
    reference = f"{REGISTRY}/cluster/postgres:{sha256(SERVE.encode()).hexdigest()[:12]}"
    if not _stored(reference):
        with tempfile.TemporaryDirectory(dir=_folder()) as context:
            (Path(context) / "serve").write_text(SERVE)
            lines = (
                f"FROM {_debian(['postgresql'])}",
                "RUN useradd --uid 10001 --home-dir /tmp database",
                "COPY --chmod=755 serve /serve",
                "USER 10001:10001",
                'ENTRYPOINT ["/serve"]',
            )
            (Path(context) / "Containerfile").write_text("\n".join(lines))
            _buildah("build", "--tag", reference, context)
        with registry() as network:
            _push(reference, network)
    return reference


def broken(reference: str) -> str:
    """The control plane's image as a version whose migration fails, pushed."""
    name = f"{reference}-broken"
    with tempfile.TemporaryDirectory(dir=_folder()) as context:
        (Path(context) / "add.py").write_text(BREAK)
        lines = (f"FROM {reference}", "USER 0", "COPY add.py /", "RUN python /add.py", "USER 10001")
        (Path(context) / "Containerfile").write_text("\n".join(lines))
        _buildah("build", "--pull-never", "--tag", name, context)
    with registry() as network:
        _push(name, network)
    return name


@contextmanager
def registry() -> Iterator[list[str]]:
    """What to run a command under so that it reaches the registry: the running cluster's, else one for a moment."""
    from tests.cluster import lifecycle  # which needs images itself

    running = lifecycle.state()
    if running and running.registry:
        yield ["nsenter", f"--target={running.supervisor}", "--net"]
        return
    process = subprocess.Popen(registry_command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + START_S
        while not accepts(REGISTRY):
            if process.poll() is not None or time.monotonic() > end:
                raise Failed(f"the registry did not start; is port {REGISTRY_PORT} taken?")
            time.sleep(0.05)
        yield []
    finally:
        process.terminate()
        process.wait()


def registry_command() -> list[str]:
    """The registry of Debian's docker-registry on loopback, with its storage in the cache."""
    config = IMAGES / "registry.json"  # JSON is YAML
    content = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(IMAGES / "registry")}},
        "http": {"addr": REGISTRY},
    }
    _folder()
    config.write_text(json.dumps(content))
    return ["docker-registry", "serve", str(config)]


def _build_small(image: Small) -> None:
    with tempfile.TemporaryDirectory(dir=_folder()) as context:
        lines = ["FROM scratch"]
        if image.busybox:
            shutil.copy("/bin/busybox", context)
            lines += ["COPY busybox /bin/busybox", 'RUN ["/bin/busybox", "--install", "-s", "/bin"]']
        for program, path in image.paths.items():
            shutil.copy((BIN / program).resolve(), Path(context) / program)
            lines.append(f"COPY {program} {path}")
        lines += [] if image.busybox else ["USER 10001:10001"]
        lines += ["ENV PATH=/usr/bin:/bin", f"ENTRYPOINT {json.dumps(list(image.paths.values())[:1])}"]
        (Path(context) / "Containerfile").write_text("\n".join(lines))
        _buildah("build", "--tag", image.reference, context)


def _base() -> str:
    """The Debian image with the Dockerfile's packages, made from Debian's own archive."""
    packages = next(
        line.partition("=")[2].strip('"').split()
        for line in (CHECKOUT / "Dockerfile").read_text().splitlines()
        if line.startswith("ARG PACKAGES=")
    )
    return _debian(packages)


def _debian(packages: list[str]) -> str:
    """Debian with packages, and without their documentation, made from its own archive."""
    reference = f"localhost/debian:{sha256(repr((SUITE, packages)).encode()).hexdigest()[:12]}"
    if not _buildah("images", "--quiet", "--filter", f"reference={reference}").strip():
        with tempfile.TemporaryDirectory(dir=_folder()) as context:
            archive = Path(context) / "root.tar"
            print(f"cluster: making a Debian image with {', '.join(packages)}", flush=True)
            slim = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale")]
            include = f"--include={','.join(packages)}"
            _run(["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", include, *slim, SUITE, str(archive)])
            (Path(context) / "Containerfile").write_text("FROM scratch\nADD root.tar /\n")
            _buildah("build", "--tag", reference, context)
    return reference


def _secrets(folder: Path) -> list[str]:
    """This machine's package index, where it is not PyPI's own, for pip and uv in the build and in no layer."""
    command = [sys.executable, "-m", "pip", "config", "get"]
    asked = (
        subprocess.run([*command, f"{part}.index-url"], capture_output=True, text=True, check=False)
        for part in (":env:", "global")
    )
    index = os.environ.get("PIP_INDEX_URL") or next((each.stdout.strip() for each in asked if each.returncode == 0), "")
    pip = configparser.ConfigParser()
    if index:
        pip["global"] = {"index-url": index}
    with (folder / "pip.conf").open("w") as file:
        pip.write(file)
    (folder / "uv.toml").write_text(f'index-url = "{index}"\n' if index else "")
    return [f"--secret=id=pip,src={folder / 'pip.conf'}", f"--secret=id=uv,src={folder / 'uv.toml'}"]


def _push(reference: str, network: list[str]) -> None:
    compression = ["--compression-format=zstd", "--compression-level=1", "--format=oci"]
    _buildah("push", "--quiet", "--tls-verify=false", *compression, reference, under=network)


def _stored(reference: str) -> bool:
    name, _, tag = reference.removeprefix(f"{REGISTRY}/").rpartition(":")
    return (IMAGES / "registry/docker/registry/v2/repositories" / name / "_manifests/tags" / tag).exists()


def _buildah(*arguments: str, under: list[str] | None = None) -> str:
    """In a mount namespace of its own: buildah leaves its storage mounted."""
    where = ["--root", str(_folder() / "buildah"), "--runroot", str(HOME / "run-buildah"), "--storage-driver=overlay"]
    command = ["unshare", "--mount", *(under or []), "buildah", *where, *arguments]
    return _run(command, os.environ | {"BUILDAH_ISOLATION": "chroot"})


def _run(command: list[str], environment: dict[str, str] | None = None) -> str:
    """Its standard output. What it says of its work goes to this process's standard error when it fails."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout[-4000:] + done.stderr[-4000:])
        raise Failed(f"{' '.join(command)} failed")
    return done.stdout


def _folder() -> Path:
    IMAGES.mkdir(parents=True, exist_ok=True)
    return IMAGES
