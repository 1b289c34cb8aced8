"""What the server's tests share: a bare HTTP client that hides nothing, request lines, and waiting for a batch."""

import http.client
import json
import time
from copy import copy
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

CHAT: Final = "/v1/chat/completions"
TERMINAL = ("completed", "failed", "expired", "cancelled")


class Said(NamedTuple):
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


class Wire:
    """One call, one connection; no retries, no compression, no redirects."""

    def __init__(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        self.host, self.port, self.key = parts.hostname or "", parts.port or 0, key
        self.timeout_s = 20.0

    def within(self, timeout_s: float) -> "Wire":
        """The same, less patient."""
        other = copy(self)
        other.timeout_s = timeout_s
        return other

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Said:
        """`body` is bytes, or anything that goes out as JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)
        try:
            connection.request(method, path, data, {"Authorization": f"Bearer {self.key}", **(headers or {})})
            answer = connection.getresponse()
            return Said(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def upload(self, data: bytes, name: str = "input.jsonl", **fields: str) -> Said:
        body, headers = multipart(data, name, {"purpose": "batch", **fields})
        return self.call("POST", "/v1/files", body, headers)

    def create(self, data: bytes, endpoint: str = CHAT, **more: Any) -> Any:
        """A new batch of these request lines."""
        file_id = self.upload(data).json["id"]
        asked = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h", **more}
        said = self.call("POST", "/v1/batches", asked)
        assert said.status == 200, said
        return said.json

    def batch(self, batch_id: str) -> Any:
        return self.call("GET", f"/v1/batches/{batch_id}").json

    def finish(self, batch_id: str, within_s: float = 20) -> Any:
        """The batch at its end."""
        deadline = time.monotonic() + within_s
        while (batch := self.batch(batch_id))["status"] not in TERMINAL:
            assert time.monotonic() < deadline, batch
            time.sleep(0.01)
        return batch

    def run(self, data: bytes, endpoint: str = CHAT, **more: Any) -> Any:
        return self.finish(self.create(data, endpoint, **more)["id"])

    def content(self, file_id: str) -> bytes:
        said = self.call("GET", f"/v1/files/{file_id}/content")
        assert said.status == 200, said
        return said.body

    def results(self, batch: Any) -> tuple[list[Any], list[Any]]:
        """What stands in a batch's output file and in its error file."""
        ids = batch["output_file_id"], batch["error_file_id"]
        outputs, errors = (
            [] if not i else [json.loads(line) for line in self.content(i).split(b"\n")[:-1]] for i in ids
        )
        return outputs, errors

    def ledger(self, run: str = "") -> Any:
        return self.call("GET", "/control/ledger" + (f"?run={run}" if run else "")).json


def multipart(
    data: bytes, name: str | None, fields: dict[str, str], part: str = "file"
) -> tuple[bytes, dict[str, str]]:
    parts = [f'--b\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()]
    if name is not None:
        head = f'--b\r\nContent-Disposition: form-data; name="{part}"; filename="{name}"\r\n'
        parts.append(head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n")
    return b"".join(parts) + b"--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}


def row(n: int | str, text: str | None = None, **body: Any) -> dict[str, Any]:
    """A chat request."""
    message = {"role": "user", "content": f"question {n}" if text is None else text}
    return {
        "custom_id": f"row-{n}",
        "method": "POST",
        "url": CHAT,
        "body": {"model": "gpt-4o-mini", "messages": [message], **body},
    }


def jsonl(rows: Any) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in rows)


def chat(count: int, first: int = 0) -> bytes:
    return jsonl(row(n) for n in range(first, first + count))
