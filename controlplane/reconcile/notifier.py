"""Tells destinations what became of runs: at least once each, in a thread of its own, whatever is killed when.

A notice is written with the phase that it tells of, in one transaction (`controlplane.store.moves`). Here it becomes a
delivery for each destination that wants it, also in one transaction; a delivery is tried until it is taken, with a
backoff, for a day. A receiver knows repetitions by `webhook-id`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from os import killpg
from signal import SIGKILL
from typing import Any

from sqlalchemy import delete, or_, select, update

from controlplane.domain.destinations import Destination, headline, signature
from controlplane.reconcile.background import Background
from controlplane.store.store import Ledger
from controlplane.store.tables import Delivery, Event, Label, Notice, Run
from controlplane.store.writer import Transaction

log = logging.getLogger(__name__)
WAITING, DELIVERED, GIVEN_UP = "waiting", "delivered", "given up"
TICK_S, IDLE_S = 1.0, 15.0
BATCH = 64
TIMEOUT_S, COMMAND_S = 10.0, 60.0
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 5.0, 3600.0
PATIENCE_S, KEPT_S, PRUNE_S = 86_400.0, 30 * 86_400.0, 3600.0
LONGEST_ANSWER = 500
AT_ONCE = 8  # destinations


class Notifier(Background):
    """Notifies `destinations`; `step` is one look, `start` and `stop` run it in a thread of its own."""

    idle_s, later, failed = IDLE_S, "notifications are sent later", "notifications could not be sent"

    def __init__(
        self,
        ledger: Ledger,
        destinations: Sequence[Destination],
        url: str,
        *,
        clock: Callable[[], float] = time.time,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._ledger, self._url, self._clock, self._timeout_s = ledger, url, clock, timeout_s
        self._pruned_at = 0.0
        self._destinations = {each.name: each for each in destinations}
        super().__init__("notifier")

    def step(self) -> bool:
        """Spread what is new and deliver what is due; whether anything waits. Raises StoreError."""
        now = self._clock()
        with self._ledger.read() as session:
            news = session.scalar(select(Notice.run_id).limit(1)) is not None
        if news or now > self._pruned_at + PRUNE_S:
            self._ledger.write(lambda transaction: self._spread(transaction, now))
            self._pruned_at = now
        if due := self._due(now):
            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="notify") as pool:
                for done in [pool.submit(self._deliver_all, of_one) for of_one in due]:
                    done.result()
        with self._ledger.read() as session:
            return session.scalar(select(Delivery.run_id).where(Delivery.state == WAITING).limit(1)) is not None

    def turn(self) -> float:
        """See `Background.turn`."""
        if self.step():
            return TICK_S
        return TICK_S * 2 if self._destinations else IDLE_S

    def _due(self, now: float) -> list[Sequence[Delivery]]:
        """What each destination is due, its oldest first: those of one that takes nothing stand before no other's."""
        ahead = Delivery.due_at > now + LONGEST_BACKOFF_S  # that far: the clock was set back
        due = (Delivery.state == WAITING, or_(Delivery.due_at <= now, ahead))
        with self._ledger.read() as session:
            names = session.scalars(select(Delivery.destination).where(*due).distinct()).all()
            oldest = select(Delivery).where(*due).order_by(Delivery.due_at).limit(BATCH)
            return [session.scalars(oldest.where(Delivery.destination == name)).all() for name in names]

    def _spread(self, transaction: Transaction, now: float) -> None:
        """A delivery of each notice for each destination that wants it; the log of long ago goes."""
        session = transaction.session
        found = session.execute(
            select(Notice, Event.data)
            .join(Event, (Event.run_id == Notice.run_id) & (Event.seq == Notice.seq))
            .limit(BATCH)
        ).all()
        for notice, data in found:
            labels = dict(session.execute(select(Label.key, Label.value).where(Label.run_id == notice.run_id)).all())
            for each in self._destinations.values():
                if each.wants(data["phase"], labels):
                    row = {"run_id": notice.run_id, "seq": notice.seq, "destination": each.name}
                    session.add(Delivery(**row, state=WAITING, tries=0, due_at=now, created_at=now))
            session.delete(notice)
        session.flush()
        session.execute(delete(Delivery).where(Delivery.created_at < now - KEPT_S))

    def _deliver_all(self, rows: Sequence[Delivery]) -> None:
        """One destination's; after one that was not taken, or was long in coming, the others wait for the next look."""
        began = time.monotonic()
        for row in rows:
            if self._stopping.is_set() or not self._deliver(row) or time.monotonic() > began + self._timeout_s:
                return

    def _deliver(self, row: Delivery) -> bool:
        destination = self._destinations.get(row.destination)
        if destination is None:
            taken, answer = False, "the configuration has no such destination any more"
        else:
            taken, answer = self._send(destination, row)
        now = self._clock()
        given_up = not taken and (destination is None or now > row.created_at + PATIENCE_S)
        pause = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(row.tries, 20))
        if not taken:
            log.warning("notification not taken", extra={"run": row.run_id, "to": row.destination, "answer": answer})
        values: dict[str, Any] = {
            "state": DELIVERED if taken else GIVEN_UP if given_up else WAITING,
            "tries": row.tries + 1,
            "answer": answer[:LONGEST_ANSWER],
            "due_at": None if taken or given_up else now + pause,
            "finished_at": now if taken or given_up else None,
        }
        this = (Delivery.run_id == row.run_id, Delivery.seq == row.seq, Delivery.destination == row.destination)
        self._ledger.write(
            lambda transaction: transaction.session.execute(update(Delivery).where(*this).values(values))
        )
        return taken

    def _send(self, destination: Destination, row: Delivery) -> tuple[bool, str]:
        """Whether it was taken, and the answer."""
        message = self._message(row)
        slack = destination.format == "slack"
        body = json.dumps({"text": message["data"]["text"]} if slack else message, ensure_ascii=False).encode()
        identity = f"{row.run_id}.{row.seq}.{row.destination}"
        if destination.command is not None:
            return _command(destination.command, body)
        now = int(self._clock())
        headers = {"content-type": "application/json", "webhook-id": identity, "webhook-timestamp": str(now)}
        if destination.secret is not None:
            headers["webhook-signature"] = signature(destination.secret, identity, now, body)
        return _post(str(destination.url), headers, body, self._timeout_s)

    def _message(self, row: Delivery) -> dict[str, Any]:
        """What is told: the event, and the run that it happened to."""
        with self._ledger.read() as session:
            event = session.get_one(Event, (row.run_id, row.seq))
            run = session.get_one(Run, row.run_id)
        phase, reason = event.data["phase"], event.data["reason"]
        said = event.message.removeprefix(f"{reason}: ") if reason else None
        told = headline(run.name, phase, reason, said if said != reason else None)
        link = f"{self._url}/v1/runs/{run.id}"
        facts = {"run": run.id, "name": run.name, "size": run.size, "phase": phase, "reason": reason}
        return {
            "type": f"run.{phase}",
            "timestamp": datetime.fromtimestamp(event.time, UTC).isoformat(),
            "data": {**facts, "attempt": event.attempt, "text": f"{told} {link}", "link": link, "message": said},
        }


def _post(url: str, headers: dict[str, str], body: bytes, timeout_s: float) -> tuple[bool, str]:
    """Its status is the answer: no redirect is followed, and no body is read, which may never end."""
    import httpx  # where there is a destination

    async def asked() -> httpx.Response:
        client = httpx.AsyncClient(timeout=timeout_s, trust_env=False)
        async with client, client.stream("POST", url, content=body, headers=headers) as reply:
            return reply

    try:
        reply = asyncio.run(asyncio.wait_for(asked(), timeout_s))  # each of httpx's own limits begins anew with a byte
    except TimeoutError:
        return False, f"no answer within {timeout_s:g} s"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return False, str(error) or type(error).__name__
    return reply.is_success, f"{reply.status_code} {reply.reason_phrase}"


def _command(command: Sequence[str], body: bytes) -> tuple[bool, str]:
    """A command of the configuration, with the message on its standard input, in a session of its own."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as error:
        return False, f"{command[0]}: {error.strerror or error}"
    with process:
        try:
            said, _ = process.communicate(body, timeout=COMMAND_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                killpg(process.pid, SIGKILL)
            return False, f"{command[0]} took longer than {COMMAND_S:g} s"
    told = said.decode("utf-8", "replace").strip().rpartition("\n")[2]
    return process.returncode == 0, f"exit code {process.returncode}{f': {told}' if told else ''}"
