"""The clusters that the settings name, made: the installation's own, and further ones that runs may name.

What cannot work is said in one sentence, before a request is taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from controlplane.clusters.base import ClusterError, Unavailable
from controlplane.domain.errors import InvalidSpec

if TYPE_CHECKING:
    from controlplane.clusters.base import Cluster
    from controlplane.clusters.pieces import Limits
    from controlplane.clusters.shelf import Shelf
    from controlplane.domain.clusters import FurtherCluster
    from controlplane.settings import Execution, Settings
    from controlplane.store.store import Ledger

T = TypeVar("T")


class StartError(Exception):
    """The process cannot start; the text is one sentence that says why. Exit code 2."""


@contextmanager
def executing(
    settings: Settings, further: Sequence[FurtherCluster], ledger: Ledger, installation: str, own: Cluster | None = None
) -> Generator[dict[str, Cluster]]:
    """What executes the runs: the installation's own cluster under "", `further` ones by name, until the end.

    `own` is the installation's where that one is there already; it stays. Raises Unavailable.
    """
    with ExitStack() as stack:

        def opened(name: str, make: Callable[[], Cluster]) -> Cluster:
            try:
                return stack.enter_context(closing(make()))
            except (ClusterError, OSError) as error:
                raise Unavailable(f"the {name} cluster cannot be used: {error}") from error

        rest = (settings, ledger, installation)
        first = own or opened(settings.execution.cluster, partial(cluster_of, *rest))
        yield {"": first} | {one.name: opened(one.name, partial(further_cluster, one, *rest)) for one in further}


def further_of(runs: Execution) -> Sequence[FurtherCluster]:
    """The clusters beside the installation's own, as its file names them. Raises StartError."""
    from controlplane.domain.clusters import parse_clusters

    found = parsed("--clusters", runs.clusters, parse_clusters) if runs.clusters else []
    if any(one.name == runs.cluster for one in found):
        raise StartError(f"--clusters: {runs.clusters}: {runs.cluster!r} is the name of the installation's own cluster")
    return found


def parsed(flag: str, file: str, parse: Callable[[Mapping[str, Any]], T]) -> T:
    """What a setting's JSON file holds. Raises StartError."""
    try:
        return parse(json.loads(Path(file).read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise StartError(f"{flag}: {file} is no readable JSON ({error})") from None
    except InvalidSpec as error:
        raise StartError(f"{flag}: {file}: {error}") from None


def cluster_of(settings: Settings, ledger: Ledger, installation: str) -> Cluster:
    """The installation's own cluster. Raises ClusterError and OSError."""
    runs = settings.execution
    if runs.cluster == "local":
        from controlplane.clusters.local import LocalCluster

        return LocalCluster(settings.home / "cluster", limits=_limits(settings))
    return _kubernetes(
        settings,
        runs.namespaces,
        name=runs.cluster,
        kubeconfig=Path(runs.kubeconfig) if runs.kubeconfig else None,
        archive=_archive(settings, ledger),
        instance=installation,
        quotas=runs.quotas,
    )


def further_cluster(given: FurtherCluster, settings: Settings, ledger: Ledger, installation: str) -> Cluster:
    """A cluster beside it. Raises ClusterError and OSError."""
    from controlplane.clusters.shelf import Within

    return _kubernetes(
        settings,
        given.namespaces,
        name=given.name,
        kubeconfig=Path(given.kubeconfig) if given.kubeconfig else None,
        context=given.context,
        archive=Within(_archive(settings, ledger), f"clusters/{given.name}"),
        instance=installation,
        quotas=given.gpu_quotas,
    )


def _archive(settings: Settings, ledger: Ledger) -> Shelf:
    """Where logs and notes lie: in the data folder, or in the `ledger` where several processes must read them."""
    from controlplane.clusters.shelf import Folder
    from controlplane.store.shelf import StoreShelf

    if settings.database.url:
        return StoreShelf(ledger, settings.logs.log_keep_bytes)
    return Folder(settings.home / "logs", _limits(settings))


def _limits(settings: Settings) -> Limits:
    from controlplane.clusters.pieces import Limits

    return Limits(settings.logs.log_piece_bytes, settings.logs.log_keep_bytes)


def _kubernetes(settings: Settings, namespaces: Sequence[str], **given: Any) -> Cluster:
    """A Kubernetes cluster over those namespaces; over that of the account or the context where there are none."""
    from controlplane.clusters.kubernetes import KubernetesCluster, Namespaces

    def within(namespace: str | None, others: tuple[str, ...] = ()) -> KubernetesCluster:
        runs = settings.execution
        return KubernetesCluster(namespace=namespace, others=others, audience=runs.audience, kind=runs.kind, **given)

    if len(namespaces) < 2:
        return within(next(iter(namespaces), None))
    first, *others = namespaces
    return Namespaces(within(first, tuple(others)), {name: within(name) for name in others})
