"""The error tree: each class says who must act, and so which exit code a command ends with.

Imports nothing. Messages are one sentence: what, where, and what to do; they never carry a key.
"""


class StreambatchError(Exception):
    """Root of all errors that this package raises on purpose."""

    exit_code = 3


class ConfigError(StreambatchError):
    """You, now: usage, settings, existing output, a locked run. Nothing was sent because of it."""

    exit_code = 2


class SourceError(StreambatchError):
    """Your data: a file that can't be read, or a row that stops the run.

    `path` names the input, `line` counts from 1; both may be None.
    """

    exit_code = 2

    def __init__(self, message: str, *, path: str | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.line = line


class ApiError(StreambatchError):
    """The service: an HTTP answer that is no success, or no answer at all.

    `status` is the HTTP status (None: no answer arrived), `code` the service's own code or type,
    `retry_after_s` what the service asked us to wait, `retryable` whether trying again can help, and
    `maybe_done` whether the request may have taken effect (a create then counts as doubted).
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        retryable: bool = False,
        maybe_done: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.retryable = retryable
        self.maybe_done = maybe_done
        if status in (401, 403):
            self.exit_code = 2  # the key or its rights: the user must change something first


class JournalError(StreambatchError):
    """The disk, or damage in the run directory; `hint` says what to try. What is damaged must be changed by you first."""

    def __init__(self, message: str, *, hint: str = "", damaged: bool = False) -> None:
        super().__init__(f"{message} {hint}".strip())
        self.hint = hint
        if damaged:
            self.exit_code = 2


class StorageError(StreambatchError):
    """The disk under the spool or the output: full, read-only, or failing. The run is resumable."""


class Paused(StreambatchError):  # noqa: N818 - a pause is no failure
    """The run stopped buying and waits for a word of the user (billing, budget, paid output gone)."""

    exit_code = 4
