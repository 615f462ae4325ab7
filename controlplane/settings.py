"""Every setting of the control plane in one frozen tree: its flag, its variable, its default, what is allowed.

Read once at start from a command line and an environment (the command line wins) and passed in from there: no module
reads a setting at import, and none below the process's wiring knows flags or variables.
"""

from __future__ import annotations

import argparse
import dataclasses
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn
from urllib.parse import urlsplit

from controlplane.authentication import Authentication
from controlplane.options import (
    LOOPBACK_NAMES,
    SettingsError,
    address,
    database_url,
    database_url_file,
    file,
    folder,
    is_loopback,
    json_object,
    labels,
    number,
    option,
    quotas,
    switch,
    text,
    url,
    whole,
    word,
)

PREFIX = "TERAGPT_"
DEFAULT_HOME = Path("~/.teragpt")
SERVICE_LINK = "tcp://"  # Kubernetes sets TERAGPT_PORT=tcp://... in pods beside a Service named teragpt
LOG_LEVELS = ("debug", "info", "warning", "error")
KINDS = ("auto", "PyTorchJob", "TrainJob", "Job")
ROLES = ("all", "api", "reconciler")


@dataclass(frozen=True)
class Listen:
    """Where the API listens."""

    host: str = option("127.0.0.1", "Address to listen on. Any other than loopback demands a token.", address)
    port: int = option(
        8000, "Port to listen on; 0 takes a free one, which `server.json` in the home names.", whole(0, 65535)
    )
    json: bool = option(
        default=False,
        help="Once it answers, print one line of JSON to stdout: `url`, `home`, `pid`, `docs`.",
        read=switch,
    )


@dataclass(frozen=True)
class Streams:
    """How event streams behave."""

    heartbeat_s: float = option(15.0, "Seconds of silence after which a stream sends a ping.", number(0.05, 300))
    poll_s: float = option(0.1, "Seconds between looks at a followed log.", number(0.01, 60))
    queue_bytes: int = option(4 << 20, "Bytes that wait for a slow client before it is closed.", whole(1, 1 << 30))
    send_timeout_s: float = option(
        20.0, "Seconds a client may leave one message unread before it is closed.", number(0.1, 600)
    )


@dataclass(frozen=True)
class Logs:
    """How what pods write is kept."""

    log_piece_bytes: int = option(
        64 << 20, "Bytes after which a piece of a pod's log is closed and compressed.", whole(64 << 10, 1 << 40)
    )
    log_keep_bytes: int = option(
        0,
        "Most bytes of a pod's log that are kept, before compression; of a longer one the oldest are given up, and it "
        "says so. 0: all of them, for ever.",
        whole(0, 1 << 50),
    )

    def check(self) -> None:
        """Raises SettingsError where less is to be kept than one piece."""
        if 0 < self.log_keep_bytes < self.log_piece_bytes:
            raise SettingsError(
                f"--log-keep-bytes: got {self.log_keep_bytes}; allowed: 0, or at least --log-piece-bytes, "
                f"{self.log_piece_bytes}"
            )


@dataclass(frozen=True)
class Execution:
    """Where runs are executed, and what their pods are given."""

    cluster: str = option(
        "local", "What executes runs: local (this machine) or kubernetes.", word("local", "kubernetes")
    )
    kubeconfig: str = option(
        "", "File that leads to the Kubernetes cluster; the pod's own account, else kubectl's file, unless given.", file
    )
    namespace: str = option(
        "",
        "Namespaces of the runs, with commas, first that of runs which name none; the account's or the context's own "
        "unless given.",
        labels,
    )
    clusters: str = option(
        "", "JSON file with further clusters that runs may name (docs/kubernetes-cluster.md); none unless given.", file
    )
    gpu_quotas: str = option(
        "",
        "GPUs that runs of a namespace may hold at once where the cluster has no Kueue, as NAMESPACE=GPUS with commas; "
        "who asks for more than is left waits in line.",
        quotas,
    )
    kind: Literal["auto", "PyTorchJob", "TrainJob", "Job"] = option(
        "auto", "Kind of the objects that runs become; auto takes the best one that the cluster has.", word(*KINDS)
    )
    image: str = option("teragpt/trainer:latest", "Image that the pods run.", text)
    storage: str = option(
        "", "Where runs without a checkpoint.uri of their own write, as pvc://claim or s3://bucket.", text
    )
    gpu_price: float = option(
        0.0, "Money for an hour of one GPU, by which plans tell what a run costs; 0: they do not.", number(0, 1e6)
    )
    public_url: str = option("", "URL under which pods reach this control plane; its own unless given.", url)
    audience: str = option("teragpt", "Audience of the tokens by which pods prove who they are.", text)
    queue: str = option("", "Kueue LocalQueue of runs that name none.", text)
    run_defaults: str = option(
        "{}",
        "What runs take of compute, scheduling, env, labels and pod_overrides where their specs say nothing, as JSON.",
        json_object,
    )

    @property
    def namespaces(self) -> tuple[str, ...]:
        """The namespaces of the runs, each once; none where they go with the account or the context."""
        return tuple(dict.fromkeys(self.namespace.split(","))) if self.namespace else ()

    @property
    def quotas(self) -> dict[str, int]:
        """The GPUs of each namespace that has a quota."""
        parts = self.gpu_quotas.split(",") if self.gpu_quotas else ()
        return {name: int(count) for name, _, count in (part.partition("=") for part in parts)}


@dataclass(frozen=True)
class Database:
    """Where runs and their history are stored, and what this process does with them."""

    database_url: str = option(
        "",
        "Postgres database of the store, as postgresql://user:password@host:5432/database; "
        "SQLite in the home unless given. PGPASSWORD, PGPASSFILE and PGSSLMODE work too.",
        database_url,
        secret=True,
    )
    database_url_file: str = option(
        "", "File that holds the URL of the database, such as a mounted secret.", database_url_file, secret=True
    )
    database_connections: int = option(
        16, "Connections to Postgres for requests; four more are for writing and leading.", whole(2, 1000)
    )
    role: Literal["all", "api", "reconciler"] = option(
        "all",
        "What this process does: all, api (serves requests) or reconciler (makes and watches jobs). "
        "Several may share a Postgres database; one of those that reconcile leads.",
        word(*ROLES),
    )
    lease_s: float = option(
        15.0, "Seconds after which another process leads where the leader has fallen silent.", number(1, 300)
    )

    @property
    def url(self) -> str:
        """The database's URL, from wherever it was given; empty for SQLite."""
        return self.database_url or self.database_url_file

    def check(self, cluster: str) -> None:
        """Raises SettingsError for settings that do not go together."""
        if self.database_url and self.database_url_file:
            raise SettingsError("--database-url and --database-url-file are both given: leave one out")
        if self.role != "all" and not self.url:
            raise SettingsError(
                f"--role {self.role} needs a database that processes can share: give Postgres with --database-url "
                "(SQLite serves one process, --role all)"
            )
        if self.role != "all" and cluster == "local":
            raise SettingsError(
                f"--role {self.role} needs a cluster that processes can share: give --cluster kubernetes "
                "(this machine's is driven by one process, --role all)"
            )


@dataclass(frozen=True)
class Settings:
    """The whole tree."""

    home: Path = field(
        default=DEFAULT_HOME, metadata={"help": "Folder of the store, the runs and the local cluster.", "read": folder}
    )
    listen: Listen = Listen()
    database: Database = Database()
    streams: Streams = Streams()
    logs: Logs = Logs()
    execution: Execution = Execution()
    authentication: Authentication = Authentication()  # noqa: RUF009 (it is frozen)
    notifications: str = option(
        "", "JSON file with the destinations of notifications (docs/notifications.md); none unless given.", file
    )
    delete_after_days: float = option(
        0.0,
        "Days after which a run that has ended is deleted, which hides it, unless it is pinned or was restored; "
        "0: never.",
        number(0, 36_500),
    )
    purge_after_days: float = option(
        0.0,
        "Days after which a deleted run is purged, with its folder, unless it is pinned; 0: never.",
        number(0, 36_500),
    )
    max_body_bytes: int = option(1 << 20, "Largest body of a request, in bytes.", whole(1 << 10, 1 << 30))
    log_level: str = option("info", "Least severe log line written.", word(*LOG_LEVELS))

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the API."""
        return is_loopback(self.listen.host)

    @property
    def token_required(self) -> bool:
        """Whether callers need a token: where it was asked for, and wherever others can reach the API."""
        return self.authentication.required or not (self.loopback or self.authentication.auth == "none")


@dataclass(frozen=True)
class Leaf:
    """A leaf of the tree: the groups that lead to it, and the field itself."""

    groups: tuple[str, ...]
    field: dataclasses.Field[Any]

    @property
    def flag(self) -> str:
        """Its option on a command line."""
        return "--" + self.field.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return PREFIX + self.field.name.upper()

    def read(self, text: str, source: str) -> object:
        """Its value from a text found at `source`. Raises SettingsError."""
        try:
            return self.field.metadata["read"](text)
        except ValueError as error:
            given = "something else" if self.field.metadata.get("secret") else repr(text)
            raise SettingsError(f"{source}: got {given}; allowed: {error}") from None


def leaves(tree: type[Any] = Settings, groups: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Every setting, in the order of declaration."""
    for entry in dataclasses.fields(tree):
        if dataclasses.is_dataclass(entry.default):
            yield from leaves(type(entry.default), (*groups, entry.name))
        else:
            yield Leaf(groups, entry)


def read(arguments: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """The settings that a command line and an environment give. Raises SettingsError; `--help` exits."""
    given = vars(_parser().parse_args(arguments))
    return build({name: text for name, text in given.items() if text is not None}, environ)


def build(given: Mapping[str, str], environ: Mapping[str, str]) -> Settings:
    """The settings in which the texts `given` by name win over the variables. Raises SettingsError."""
    settings = Settings(home=DEFAULT_HOME.expanduser())
    for leaf in leaves():
        name = leaf.field.name
        if name in given:
            settings = _replaced(settings, leaf.groups, name, leaf.read(given[name], leaf.flag))
        elif (text := environ.get(leaf.variable, "")) and not text.startswith(SERVICE_LINK):
            settings = _replaced(settings, leaf.groups, name, leaf.read(text, leaf.variable))
    settings.logs.check()
    settings.database.check(settings.execution.cluster)
    settings.authentication.check(settings.execution.cluster, loopback=settings.loopback)
    return settings


def hosts(settings: Settings) -> frozenset[str]:
    """Names under which a caller may address the API.

    Loopback's, the bound one, that of the public URL, those that are allowed, and this machine's where all are bound.
    """
    bound = settings.listen.host.lower()
    everywhere = {socket.gethostname().lower()} if bound in {"0.0.0.0", "::"} else set[str]()
    public = urlsplit(settings.execution.public_url).hostname
    allowed = {name for name in (public, *settings.authentication.allowed_hosts.split(",")) if name}
    return LOOPBACK_NAMES | {bound} | everywhere | allowed


def _replaced(tree: Any, groups: tuple[str, ...], name: str, value: object) -> Any:
    if not groups:
        return dataclasses.replace(tree, **{name: value})
    branch = _replaced(getattr(tree, groups[0]), groups[1:], name, value)
    return dataclasses.replace(tree, **{groups[0]: branch})


def shown(value: object) -> str:
    """A default as it is typed."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; --help lists the options")


def _parser() -> argparse.ArgumentParser:
    about = "The control plane and a cluster of this machine, until SIGTERM or SIGINT."
    parser = _Parser(prog="teragpt up", description=about, allow_abbrev=False)
    for leaf in leaves():
        truth: dict[str, Any] = {"nargs": "?", "const": "true"} if leaf.field.metadata["read"] is switch else {}
        text = f"{leaf.field.metadata['help']} [{leaf.variable}; default: {shown(leaf.field.default)}]"
        parser.add_argument(leaf.flag, dest=leaf.field.name, metavar="VALUE", help=text.replace("%", "%%"), **truth)
    return parser
