"""A stand-in for the API server, its operator and its kubelets, for more pods than a small machine has room for.

`StandIn` starts it as a process of its own (`python -m benchmarks.kubernetes.standin`), whose work nobody counts. Of
Kubernetes it has nodes, lists in pages, watches with bookmarks, PyTorchJobs whose pods run as soon as they are made,
and logs that do not grow. It is no API server: what is true of one is found out with one.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from benchmarks.kubernetes.fleet import LOG, NODES, ROOM, container, now, pods_of
from tests.cluster.plane import LEASH

KINDS = {
    "/apis/kubeflow.org/v1": {"pytorchjobs": "PyTorchJob"},
    "/apis/batch/v1": {"jobs": "Job"},
    "/api/v1": {"pods": "Pod", "events": "Event", "nodes": "Node"},
}
PATH = re.compile(r"(/api/v1|/apis/[^/]+/[^/]+)(?:/namespaces/[^/]+)?/([a-z]+)(?:/([^/]+))?(?:/(log))?")
BOOKMARK_S = 60.0
FOLLOWED_S = 30.0
KEPT = 100_000  # events
ABSENT = {"reason": "NotFound", "code": 404}


class World:
    """What there is, by kind and name, and what happened."""

    def __init__(self) -> None:
        ready = {"allocatable": ROOM, "capacity": ROOM, "conditions": [{"type": "Ready", "status": "True"}]}
        nodes = {f"node-{number}": {"metadata": {"name": f"node-{number}"}, "status": ready} for number in range(NODES)}
        self.objects: dict[str, dict[str, dict[str, Any]]] = {"pytorchjobs": {}, "pods": {}, "nodes": nodes}
        self.texts = {
            kind: {name: json.dumps(raw) for name, raw in known.items()} for kind, known in self.objects.items()
        }
        self.history: list[tuple[int, str, bytes]] = []
        self.version, self.reads, self.epoch = 1, 0, 0
        self.forgotten = 0  # the last version that no watch can go on from
        self.news = asyncio.Event()

    def record(self, what: str, kind: str, raw: dict[str, Any]) -> None:
        """Something happened to an object."""
        self.version += 1
        raw["metadata"]["resourceVersion"] = str(self.version)
        known = self.objects[kind]
        known.pop(raw["metadata"]["name"], None) if what == "DELETED" else known.update({raw["metadata"]["name"]: raw})
        text = json.dumps(raw)
        if what == "DELETED":
            del self.texts[kind][raw["metadata"]["name"]]
        else:
            self.texts[kind][raw["metadata"]["name"]] = text
        self.history.append((self.version, kind, f'{{"type": "{what}", "object": {text}}}\n'.encode()))
        del self.history[:-KEPT]
        self.news.set()
        self.news = asyncio.Event()

    def create(self, raw: dict[str, Any]) -> dict[str, Any]:
        """A job, and its pods, which run."""
        raw["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
        self.record("ADDED", "pytorchjobs", raw)
        for pod in pods_of(raw):
            pod["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
            self.record("ADDED", "pods", pod)
        return raw

    def delete(self, name: str) -> None:
        """A job, and its pods before it."""
        job = self.objects["pytorchjobs"].get(name)
        if job is not None:
            for pod in [
                pod for pod in self.objects["pods"].values() if pod["metadata"]["ownerReferences"][0]["name"] == name
            ]:
                self.record("DELETED", "pods", pod)
            self.record("DELETED", "pytorchjobs", job)

    def flip(self, name: str, running: bool) -> None:  # noqa: FBT001 - a state
        """A pod's container runs, or starts."""
        state = {"running": {"startedAt": now()}} if running else {"waiting": {"reason": "ContainerCreating"}}
        pod = self.objects["pods"][name]
        pod["status"]["containerStatuses"] = [container(state)]
        self.record("MODIFIED", "pods", pod)

    def forget(self) -> None:
        """Cut every watch; none can go on from what it knows."""
        self.version += 1
        self.forgotten, self.epoch = self.version, self.epoch + 1
        self.history.clear()
        self.news.set()
        self.news = asyncio.Event()


class Handler:
    """Answers one connection's requests, one after the other."""

    def __init__(self, world: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._world, self._reader, self._writer = world, reader, writer

    async def serve(self) -> None:
        """Until the client leaves."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await self._reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                method, target, _ = lines[0].split(" ")
                length = next((int(line[15:]) for line in lines if line.lower().startswith("content-length:")), 0)
                body = json.loads(await self._reader.readexactly(length)) if length else {}
                parts = urlsplit(target)
                query = {key: values[0] for key, values in parse_qs(parts.query).items()}
                await self._answer(method, parts.path, query, body)
        self._writer.close()

    async def _answer(self, method: str, path: str, query: dict[str, str], body: Any) -> None:
        found = PATH.fullmatch(path)
        if path.startswith("/bench/"):
            self._send(200, self._bench(path.removeprefix("/bench/"), query))
        elif path in KINDS:
            self._send(200, {"resources": [{"name": name, "kind": kind} for name, kind in KINDS[path].items()]})
        elif any(one.startswith(f"{path}/") for one in KINDS):
            self._send(200, {"preferredVersion": {"version": "v1"}})
        elif "accessreviews" in path:
            self._send(201, {"status": {"allowed": True}})
        elif found is None or found[2] not in KINDS.get(found[1], ()):
            self._send(404, ABSENT)
        elif found[4]:
            await self._log(query)
        elif "watch" in query:
            await self._watch(found[2], int(query["resourceVersion"]))
        else:
            self._object(method, found[2], found[3], query, body)

    def _object(self, method: str, kind: str, name: str | None, query: dict[str, str], body: Any) -> None:
        world = self._world
        if method == "POST":
            self._send(201, body if "dryRun" in query else world.create(body))
        elif method == "DELETE":
            world.delete(str(name))
            self._send(200, {})
        elif name is None:
            self._write(200, self._page(kind, query))
        elif (raw := world.objects.get(kind, {}).get(name)) is not None:
            self._send(200, raw)
        else:
            self._send(404, ABSENT)

    def _bench(self, what: str, query: dict[str, str]) -> Any:
        world = self._world
        if what == "flip":
            world.flip(query["name"], query["running"] == "True")
        elif what == "forget":
            world.forget()
        return {"reads": world.reads, "names": [*world.objects["pods"]] if what == "names" else []}

    def _page(self, kind: str, query: dict[str, str]) -> bytes:
        texts = self._world.texts.get(kind, {})
        chosen = sorted(texts)
        first = int(query.get("continue", "0"))
        last = first + int(query.get("limit", "500"))
        more = str(last) if last < len(chosen) else ""
        about = json.dumps({"resourceVersion": str(self._world.version), "continue": more})
        items = ", ".join(texts[name] for name in chosen[first:last])
        return f'{{"kind": "List", "metadata": {about}, "items": [{items}]}}'.encode()

    async def _watch(self, kind: str, seen: int) -> None:
        world, epoch = self._world, self._world.epoch
        self._begin()
        if seen < world.forgotten:
            self._chunk(json.dumps({"type": "ERROR", "object": {"code": 410, "reason": "Expired"}}).encode() + b"\n")
        while world.epoch == epoch and seen >= world.forgotten:
            events = list(self._since(kind, seen))
            seen = world.version
            bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(seen)}}}
            self._chunk(b"".join(events) or json.dumps(bookmark).encode() + b"\n")
            await self._writer.drain()
            with suppress(TimeoutError):
                async with asyncio.timeout(BOOKMARK_S):
                    while not any(True for _ in self._since(kind, seen)) and world.epoch == epoch:
                        await world.news.wait()
        self._writer.write(b"0\r\n\r\n")

    def _since(self, kind: str, seen: int) -> Iterator[bytes]:
        history = self._world.history
        first = len(history)
        while first and history[first - 1][0] > seen:
            first -= 1
        return (line for _, what, line in history[first:] if what == kind)

    async def _log(self, query: dict[str, str]) -> None:
        self._world.reads += 1
        self._begin()
        since = query.get("sinceTime", "").removesuffix("Z")
        lines = [line for line in LOG if not since or line.decode() >= since]
        if lines:
            self._chunk(b"".join(lines))
        if "follow" in query:
            await asyncio.sleep(FOLLOWED_S)
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    def _begin(self) -> None:
        self._writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

    def _chunk(self, data: bytes) -> None:
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _send(self, status: int, body: Any) -> None:
        self._write(status, json.dumps(body).encode())

    def _write(self, status: int, data: bytes) -> None:
        self._writer.write(b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n%b" % (status, len(data), data))


class StandIn:
    """The process, as `pods` knows an API server and a fleet: `names` are those of the pods that run."""

    def __init__(self) -> None:
        command = [*LEASH, sys.executable, "-m", "benchmarks.kubernetes.standin"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        self._http = httpx.Client(base_url=self.url, trust_env=False, timeout=60)

    @property
    def names(self) -> list[str]:
        """The pods."""
        return list(self._bench("names")["names"])

    @property
    def reads(self) -> int:
        """How often a log was asked for."""
        return int(self._bench("reads")["reads"])

    def flip(self, name: str, *, running: bool) -> None:
        """Have a pod's container run, or start."""
        self._bench("flip", name=name, running=str(running))

    def jobs(self) -> list[Any]:
        """The jobs that there are."""
        return list(self._http.get("/apis/kubeflow.org/v1/pytorchjobs").json()["items"])

    def forget(self) -> None:
        """No watch can go on from what it knows."""
        self._bench("forget")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._http.close()

    def _bench(self, what: str, **query: str) -> Any:
        return self._http.get(f"/bench/{what}", params=query).json()


async def main() -> None:
    """Print the port, and answer until killed."""
    world = World()
    server = await asyncio.start_server(
        lambda reader, writer: Handler(world, reader, writer).serve(), "127.0.0.1", 0, limit=1 << 20
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
