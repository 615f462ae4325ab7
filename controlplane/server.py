"""The process: API, reconciler and cluster, wired together, started and stopped, or only one part of them by its role.

`python -m controlplane.server` and `teragpt up`. What cannot work is said in one sentence before anything is changed:
the port is taken first, then the data folder. Heavy imports come after that. Stopping it leaves running pods alone;
the next process takes them up again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from controlplane import heap, logfmt, tracing
from controlplane.clusters.base import Unavailable
from controlplane.domain.errors import InvalidSpec, StoreError
from controlplane.domain.retention import Retention
from controlplane.execution import StartError, executing, further_of, parsed
from controlplane.options import SettingsError
from controlplane.settings import Listen, Settings, read

if TYPE_CHECKING:
    from fastapi import FastAPI

    from controlplane.api.telemetry import Measurements
    from controlplane.clusters.base import Cluster
    from controlplane.domain.destinations import Destination
    from controlplane.services.context import Context
    from controlplane.store.store import Ledger

log = logging.getLogger("controlplane.server")

ADDRESS_FILE, TOKEN_FILE = "server.json", "token"
BACKLOG = 2048
RETENTION_S = 3600.0  # between looks for what has been kept for long enough
GIVEN_BACK_S = 60.0  # from one time that free memory is given back to the next
IDLE_S = 75  # how long a request's headers may take, or be waited for: longer than clients and load balancers wait
DRAIN_S = 1  # how long requests may go on after SIGTERM
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # what to call for what is bound


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code: 0, or 2 where it could not start."""
    heap.keep_small()
    try:
        settings = read(sys.argv[1:] if arguments is None else arguments, os.environ)
        with bound(settings.listen) as listener:
            run(settings, listener)
    except (SettingsError, StartError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:  # before the server listens to signals
        return 128 + signal.SIGINT
    return 0


def restored(backup: Path, home: str | None, *, as_json: bool = False) -> int:
    """Make the data folder `home` (the setting's, unless given) of a backup. Returns the exit code: 0, or 2."""
    from controlplane.store.copies import restore
    from controlplane.store.store import DATABASE

    try:
        folder = read([] if home is None else ["--home", home], os.environ).home
        restore(backup, folder, DATABASE)
    except (SettingsError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    told = f"{folder / DATABASE} is restored\nnext: teragpt up --home {folder}"
    print(json.dumps({"home": str(folder), "file": str(folder / DATABASE)}) if as_json else told)  # noqa: T201
    return 0


@contextmanager
def bound(listen: Listen) -> Generator[socket.socket]:
    """A socket that listens: callers wait from now on until they are answered. Raises StartError."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartError(f"--host {listen.host}: {error.strerror or error}") from None
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen(BACKLOG)
        except OSError as error:
            where = f"port {listen.port} of {listen.host}"
            raise StartError(f"{where} cannot be had ({error.strerror}): give another with --port") from None
        yield listener


def address(settings: Settings, listener: socket.socket) -> str:
    """The URL under which this machine reaches the API."""
    host = EVERYWHERE.get(settings.listen.host, settings.listen.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def run(settings: Settings, listener: socket.socket) -> None:
    """Serve on `listener` until told to stop. Raises StoreError where the data folder cannot be used."""
    logfmt.configure(settings.log_level)
    from controlplane.api.app import create_app, product_version

    url = address(settings, listener)
    with tracing.exported(os.environ, product_version()), opened(settings, url) as context:
        token = ensure_token(settings.home) if settings.token_required else None
        app = create_app(context, settings, token=token)
        part = nullcontext() if settings.database.role == "api" else leading(context, settings, app.state.measurements)
        with part, announced(settings.home, url, token_required=bool(token)):
            log.info("ready", extra={"url": url, "home": settings.home, "pid": os.getpid(), "docs": f"{url}/docs"})
            if settings.listen.json:
                facts = {"url": url, "home": str(settings.home), "pid": os.getpid(), "docs": f"{url}/docs"}
                print(json.dumps(facts), flush=True)  # noqa: T201
            heap.keep_loaded()
            serve(app, listener)
    log.info("stopped")


@contextmanager
def opened(settings: Settings, url: str) -> Generator[Context]:
    """The store and the clusters. Raises StoreError and StartError."""
    from controlplane.domain.defaults import parse_defaults
    from controlplane.services.context import Context, Place
    from controlplane.store.store import Store

    runs = settings.execution
    try:
        defaults = parse_defaults(json.loads(runs.run_defaults))
    except InvalidSpec as error:
        raise StartError(f"--run-defaults: {error}") from None
    database, public, further = settings.database, runs.public_url or url, further_of(runs)
    with ExitStack() as stack:
        store = stack.enter_context(closing(Store(settings.home, database.url, database.database_connections)))
        installation = "" if store.shared else store.installation
        try:
            clusters = stack.enter_context(executing(settings, further, store, installation))
        except Unavailable as error:
            raise StartError(str(error)) from None
        yield Context(
            store,
            clusters[""],
            settings.home,
            public,
            image=runs.image,
            kind=runs.kind,
            queue=runs.queue,
            storage=runs.storage,
            defaults=defaults,
            destinations=destinations_of(settings.notifications),
            retention=Retention(settings.delete_after_days, settings.purge_after_days),
            gpu_price=runs.gpu_price,
            further={
                one.name: Place(clusters[one.name], str(one.public_url or public).rstrip("/"), one.storage)
                for one in further
            },
        )


def destinations_of(file: str) -> list[Destination]:
    """Where notifications go. Raises StartError."""
    from controlplane.domain.destinations import parse_destinations

    return parsed("--notifications", file, parse_destinations) if file else []


@contextmanager
def leading(context: Context, settings: Settings, measurements: Measurements) -> Generator[None]:
    """The reconcilers at work: always where this process alone has the store, else while it leads."""
    if not context.store.shared:
        clusters = {"": context.cluster} | {name: place.cluster for name, place in context.further.items()}
        with reconciling(context, context.store, clusters, measurements):
            yield
        return
    from controlplane.reconcile.leader import Candidate
    from controlplane.store.leadership import Term

    @contextmanager
    def work(term: Term) -> Generator[None]:
        own = context.cluster if settings.execution.cluster == "local" else None  # this machine's is one alone
        driven = executing(
            settings, further, term, context.store.installation, own
        )  # apart from those that answer requests
        with driven as clusters, reconciling(context, term, clusters, measurements):
            yield

    further, name = further_of(settings.execution), f"{socket.gethostname()} {os.getpid()}"
    candidate = Candidate(context.store, name, settings.database.lease_s, work)
    measurements.leads(lambda: candidate.leads)
    candidate.start()
    try:
        yield
    finally:
        candidate.stop()


@contextmanager
def reconciling(
    context: Context, ledger: Ledger, clusters: Mapping[str, Cluster], measurements: Measurements
) -> Generator[None]:
    """A reconciler's thread at work for each cluster, its looks measured, and what else is done in the background."""
    from controlplane.reconcile.background import Background, Chore
    from controlplane.reconcile.notifier import Notifier
    from controlplane.reconcile.outbox import Site
    from controlplane.reconcile.packer import Packer
    from controlplane.reconcile.reconciler import Reconciler
    from controlplane.services.retention import enforce

    turn = threading.Lock()

    def reconciler(name: str, cluster: Cluster) -> Reconciler:
        class Measured(Reconciler):
            def step(self, *, whole: bool = True) -> bool:
                with measurements.look(name):
                    return super().step(whole=whole)

        site = Site(context.at(name).url, context.image, context.queue)
        return Measured(ledger, cluster, site=site, of=name, turn=turn)

    packer = Packer(ledger)
    notifier = Notifier(ledger, context.destinations, context.url)
    retention = Chore("retention", lambda: enforce(context), RETENTION_S)
    memory = Chore("memory", heap.give_back, GIVEN_BACK_S)
    reconcilers = [reconciler(name, cluster) for name, cluster in clusters.items()]
    workers: list[Reconciler | Background] = [*reconcilers, packer, notifier, retention, memory]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in reversed(workers):
            worker.stop()
        measurements.rests()


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Answer requests until SIGTERM or SIGINT; open streams end, and a second signal ends everything at once."""
    import uvicorn

    from controlplane.api.connections import Connection

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            del sig, frame
            self.should_exit, self.force_exit = True, self.should_exit

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.hub.close()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who calls is told by the connection, not by what a caller writes
        timeout_keep_alive=IDLE_S,  # who closes first while the other sends makes that request fail
        timeout_graceful_shutdown=DRAIN_S,
    )
    asyncio.run(Server(config).serve([listener]))


def ensure_token(home: Path) -> str:
    """The token in the data folder, made at first need; nobody else on this machine can read it. Raises StartError."""
    path = home / TOKEN_FILE
    if not path.exists():
        write_private(path, secrets.token_urlsafe(32) + "\n")
    try:
        path.chmod(0o600)
        token = path.read_text("ascii").strip()
    except (OSError, ValueError) as error:
        raise StartError(f"{path} cannot be used: {error}") from None
    if not token:
        raise StartError(f"{path} is empty: remove it, and a new token is made")
    return token


@contextmanager
def announced(home: Path, url: str, *, token_required: bool) -> Generator[None]:
    """Says in the data folder where this process answers, for as long as it does."""
    path = home / ADDRESS_FILE
    facts = {"url": url, "pid": os.getpid(), "started_at": time.time(), "token_required": token_required}
    write_private(path, json.dumps(facts) + "\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads; whole or not at all. Raises StartError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.touch(0o600)
        draft.write_text(text, "ascii")
        draft.replace(path)
    except OSError as error:
        raise StartError(f"{path} cannot be written: {error.strerror or error}") from None


if __name__ == "__main__":
    sys.exit(main())
