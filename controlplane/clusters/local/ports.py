"""Rendezvous ports, each bound from before its pods start until the last has ended, so that no one else gets it.

A socket that is bound with SO_REUSEADDR and never listens keeps the port from every `bind` but one: that of a server
which sets SO_REUSEADDR too and listens, as torch's TCPStore does. So there is no gap in which a reserved port is free.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST, ABOVE = 20000, 32768  # where nothing well known lives and, by default, no outgoing connection starts


def reserve(port: int | None = None) -> socket.socket:
    """A port that nobody holds (or the given one), as the socket that holds it. Raises OSError: none is free."""
    for candidate in _candidates() if port is None else (port,):
        with suppress(OSError):
            return _bind(candidate)
    raise OSError(f"no free port for the rendezvous{f' at {port}' if port else ''}")


def _candidates() -> Iterator[int]:
    below = min(ABOVE, int(EPHEMERAL.read_text(encoding="ascii").split()[0]))
    yield from random.sample(range(LOWEST, below), max(0, below - LOWEST))
    yield 0  # whatever the kernel has left


def _bind(port: int) -> socket.socket:
    """Bind on every address, refusing what anyone else has bound; then let the pod's own server in."""
    held = socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET)
    try:
        if held.family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        held.bind(("", port))
    except OSError:
        held.close()
        raise
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return held
