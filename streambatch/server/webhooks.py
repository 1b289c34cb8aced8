"""Tells the user's own server that a batch has ended: signed posts, sent again a few times where the answer is no success.

One thread; what is due stands in the database, so that a restart forgets no event. Knows no HTTP of ours.
"""

import base64
import hashlib
import hmac
import http.client
import logging
import threading
import time
import urllib.error
import urllib.request
from typing import IO, Any
from urllib.parse import urlsplit

import orjson

from streambatch.server.records import Batch
from streambatch.server.settings import Settings, is_loopback
from streambatch.server.store import Store

ATTEMPTS = 5
FIRST_PAUSE_S = 5.0  # at speed 1; doubles
ANSWER_S = 3.0
IDLE_S = 60.0
AT_ONCE = 100
log = logging.getLogger("streambatch.server")


class _Nowhere(urllib.request.HTTPRedirectHandler):
    """A redirect is no success."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        return None


class Webhooks:
    """Delivers what is due. `nudge` is called from other threads; all the rest happens in its own."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._wake = threading.Event()
        self._closed = False
        self._tries: dict[int, tuple[int, float]] = {}
        self._thread = threading.Thread(target=self._run, name="streambatch-server-webhooks", daemon=True)
        host = urlsplit(settings.webhook_url or "").hostname or ""
        direct = [urllib.request.ProxyHandler({})] if is_loopback(host) else []
        self._opener = urllib.request.build_opener(_Nowhere, *direct)

    def start(self) -> None:
        if self._settings.webhook_url is not None:
            self._thread.start()

    def stop(self) -> None:
        """End after the post at hand."""
        self._closed = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def nudge(self) -> None:
        """A batch has ended."""
        self._wake.set()

    def _run(self) -> None:
        while not self._closed:
            self._wake.clear()
            try:
                pause = self._work()
            except Exception:  # whatever it is, later events go on
                log.exception("a webhook failed")
                pause = FIRST_PAUSE_S
            self._wake.wait(pause)

    def _work(self) -> float:
        """Post what is due; seconds until more will be."""
        soonest = IDLE_S
        for batch in self._store.due_events(AT_ONCE):
            if self._closed:
                break
            attempts, due = self._tries.get(batch.key, (0, 0.0))
            wait = due - time.monotonic()
            if wait <= 0:
                wait = self._attempt(batch, attempts + 1)
            soonest = min(soonest, wait)
        return soonest

    def _attempt(self, batch: Batch, attempt: int) -> float:
        """Post one event; seconds until it is to be posted again, 0 where that is settled."""
        delivered = self._post(batch)
        if not delivered and attempt < ATTEMPTS:
            pause: float = FIRST_PAUSE_S * 2 ** (attempt - 1) / self._settings.speed
            self._tries[batch.key] = (attempt, time.monotonic() + pause)
            return pause
        if not delivered:
            log.warning("the event of batch %s was not taken in %d attempts", batch.id, attempt)
        self._store.settle_event(batch.key)
        self._tries.pop(batch.key, None)
        return 0.0

    def _post(self, batch: Batch) -> bool:
        """Whether the answer is a success."""
        body = orjson.dumps(event_of(batch))
        headers = signed(event_id(batch), int(time.time()), body, self._settings.webhook_secret or "")
        call = urllib.request.Request(self._settings.webhook_url or "", body, headers, method="POST")
        try:
            with self._opener.open(call, timeout=ANSWER_S) as answer:
                return bool(200 <= answer.status < 300)
        except (OSError, http.client.HTTPException) as error:
            log.info("the event of batch %s was not taken: %s", batch.id, error)
            return False


def event_id(batch: Batch) -> str:
    """The same at every delivery."""
    return f"evt_{hashlib.sha256(batch.id.encode()).hexdigest()[:32]}"


def event_of(batch: Batch) -> dict[str, Any]:
    return {
        "id": event_id(batch), "object": "event", "created_at": getattr(batch, f"{batch.status}_at"),
        "type": f"batch.{batch.status}", "data": {"id": batch.id},
    }  # fmt: skip


def signed(webhook_id: str, now: int, body: bytes, secret: str) -> dict[str, str]:
    """The headers of a post, with the signature that the official clients check."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mark = hmac.new(key, f"{webhook_id}.{now}.".encode() + body, hashlib.sha256).digest()
    return {
        "Content-Type": "application/json", "User-Agent": "streambatch-server", "webhook-id": webhook_id,
        "webhook-timestamp": str(now), "webhook-signature": f"v1,{base64.b64encode(mark).decode()}",
    }  # fmt: skip
