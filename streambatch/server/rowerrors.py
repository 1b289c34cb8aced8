"""An answer to one row that is an error, as the model's endpoint would give it. Knows nothing else."""


class RowError(Exception):
    """An answer that is an error: its HTTP status and what stands in the body's `error`."""

    def __init__(
        self,
        message: str,
        status: int = 500,
        code: str | None = None,
        kind: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.kind = kind if kind is not None else ("server_error" if status >= 500 else "invalid_request_error")
        self.param = param
