"""What the server remembers of a file and of a batch: one flat row each, its columns are the fields.

Times are unix seconds, as on the wire. Knows nothing of HTTP or of the database.
"""

import secrets
import string

import msgspec

NEVER = 1 << 40  # a time that stands for none
LIVE = ("validating", "in_progress", "finalizing", "cancelling")
TERMINAL = ("completed", "failed", "expired", "cancelled")
BASE62 = string.digits + string.ascii_letters


class File(msgspec.Struct, frozen=True):
    """A stored file. `content` is our own name of it on disk; `rows` and `run` are kept for the ledger; flags are 0 or 1."""

    seq: int | None
    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int
    content: str
    rows: int = 0
    run: str = ""
    delivered: int = 0
    deleted: int = 0
    visible_at: float = 0.0
    gone_at: float = NEVER
    extra_bytes: int = 0  # a script's lie about `bytes`

    @property
    def key(self) -> int:
        """Its place in the list; of a stored file."""
        assert self.seq is not None, "not stored"
        return self.seq


class Upload(msgspec.Struct, frozen=True):
    """A file that arrives in parts; `bytes` is what the client promised."""

    seq: int | None
    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int
    file_expires_s: int | None = None
    status: str = "pending"

    def shown_status(self, now: float) -> str:
        return "expired" if self.status == "pending" and self.expires_at <= now else self.status


class Part(msgspec.Struct, frozen=True):
    """A part of an upload; `content` is our own name of it on disk."""

    seq: int | None
    id: str
    upload_id: str
    bytes: int
    created_at: int
    content: str


class Batch(msgspec.Struct, frozen=True):
    """A batch: what the wire shows, and how far the work on it is committed.

    `row` and `offset` are the next line of the input; the sizes are the committed lengths of the files on disk.
    `ending` says why no more rows are executed: `expired`, `cancelled`, or empty. `view` holds a script's lies, as JSON.
    """

    seq: int | None
    id: str
    run: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: str
    created_at: int
    expires_at: int
    metadata: str | None = None
    output_expires_s: int | None = None
    input_content: str = ""
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    model: str | None = None
    errors: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    ending: str = ""
    total: int = 0
    row: int = 0
    offset: int = 0
    completed: int = 0
    failed: int = 0
    executed: int = 0
    lost: int = 0
    names_bytes: int = 0  # of the ledger's list of executed rows
    output_bytes: int = 0
    output_rows: int = 0
    error_bytes: int = 0
    error_rows: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    queued_tokens: int = 0
    hidden_until: float = 0.0
    denied_until: float = 0.0
    view: str = "{}"
    event_due: int = 0  # 1: its end is yet to be told to the webhook

    @property
    def key(self) -> int:
        """Its place in the list; of a stored batch."""
        assert self.seq is not None, "not stored"
        return self.seq


def run_of(metadata: dict[str, str] | None) -> str:
    """The run in a batch's `streambatch` metadata (`run/shard/create`); empty for a stranger's batch."""
    return (metadata or {}).get("streambatch", "").partition("/")[0]


def new_file_id() -> str:
    return "file-" + "".join(secrets.choice(BASE62) for _ in range(22))


def new_batch_id() -> str:
    return "batch_" + secrets.token_hex(16)


def new_upload_id() -> str:
    return "upload_" + secrets.token_hex(16)


def new_part_id() -> str:
    return "part_" + secrets.token_hex(16)


def new_content_name() -> str:
    """A name on disk that owes nothing to what a client sent."""
    return secrets.token_hex(16)
