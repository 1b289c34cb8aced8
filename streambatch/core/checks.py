"""What `check` finds out: answers of the service judged into one line for each thing that must work. Sends nothing.

Pure. Where a fact comes from (a socket, the environment) is not known here; no sentence holds a secret.
"""

from typing import Any, Literal

import msgspec

from streambatch.core.wire import Refusal, refusal_of_error
from streambatch.core.wording import one_line
from streambatch.errors import ApiError, ConfigError, StreambatchError

State = Literal["ok", "warning", "failed", "skipped"]
SCHEMA_VERSION = 1
CLOCK_S = 60.0  # a clock that is off by more is worth a word
UNLISTED = (400, 404, 405, 501)  # how services say that they do not have a route


class Check(msgspec.Struct, frozen=True):
    """One thing that must work. `message` is one sentence: what was found and, where it failed, what to do."""

    name: str
    state: State
    message: str
    exit_code: int = 0  # of a failed one: 2 where you must change something, 3 where it is the service or the network


class Checks(msgspec.Struct, frozen=True):
    """What works from here. `exit_code` is the command's: 0 when nothing failed."""

    schema_version: int
    base_url: str
    exit_code: int
    message: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return self.exit_code == 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, same names."""
        return dict(msgspec.to_builtins(self))


class Reply(msgspec.Struct, frozen=True):
    """What came of one call: the answer's bytes, or an error. `skew_s`: our clock less the service's, where it told its time."""

    error: StreambatchError | None = None
    answered: bool = False  # with whatever
    body: bytes = b""
    skew_s: float | None = None
    took_s: float = 0.0
    untrusted: bool = False  # it failed at the certificate

    @property
    def status(self) -> int | None:
        """Of an answer that is no success."""
        return self.error.status if isinstance(self.error, ApiError) else None

    @property
    def code(self) -> str | None:
        return self.error.code if isinstance(self.error, ApiError) else None


def conclude(base_url: str, checks: tuple[Check, ...]) -> Checks:
    """All checks and what follows from them; who must change something comes before who must wait."""
    failed = [check for check in checks if check.state == "failed"]
    code = min((check.exit_code for check in failed), default=0)
    message = f"Not everything works from here: {', '.join(check.name for check in failed)}; nothing was sent."
    return Checks(SCHEMA_VERSION, base_url, code, message if failed else "Everything that was tried works.", checks)


def failed(name: str, error: StreambatchError, lead: str = "") -> Check:
    """A check that ended in an error."""
    billing = isinstance(error, ApiError) and refusal_of_error(error) is Refusal.BILLING
    code = ConfigError.exit_code if billing or error.exit_code == ConfigError.exit_code else StreambatchError.exit_code
    return Check(name, "failed", f"{lead}{error}", code)


# -- one judgement for each


UNREACHED = "Not tried: the service was not reached."
REFUSED = "Not tried: it needs a key that the service accepts."


def proxy(said: str, used: bool, first: Reply) -> Check:
    """The way there. What fails behind a proxy before an answer is the way's fault; the sentence says which part."""
    if used and not first.answered and not first.untrusted and first.error is not None:
        return failed("proxy", first.error)
    return Check("proxy", "ok", said)


def connection(where: str, proxied: bool, first: Reply) -> Check:
    if first.answered:
        return Check("connection", "ok", f"{where} answered in {first.took_s * 1000:.0f} ms.")
    if first.untrusted:
        return Check("connection", "ok", f"{where} takes connections.")
    if proxied or first.error is None:
        return Check("connection", "skipped", f"Not tried: the proxy did not lead to {where}.")
    return failed("connection", first.error)


def certificate(secure: bool, trusted_by: str, first: Reply) -> Check:
    if not secure:
        return Check("certificate", "skipped", "Clear-text HTTP has none.")
    if first.untrusted and first.error is not None:
        return failed("certificate", first.error)
    if not first.answered:
        return Check("certificate", "skipped", UNREACHED)
    return Check("certificate", "ok", f"Trusted by {trusted_by}.")


def key(source: str, fault: StreambatchError | None, replies: tuple[Reply, ...]) -> Check:
    """Whether the key is accepted. A key that is not allowed one thing was accepted all the same."""
    if fault is not None:
        return failed("key", fault)
    refused = next((reply.error for reply in replies if reply.status == 401), None)
    if refused is not None:
        return failed("key", refused, f"From {source}: ")
    if not any(reply.answered for reply in replies):
        return Check("key", "skipped", f"From {source}; not tried: the service was not reached.")
    if not any(reply.error is None or reply.status == 403 for reply in replies):
        return Check("key", "skipped", f"From {source}; the service did not say whether it accepts it.")
    return Check("key", "ok", f"Accepted; it comes from {source}.")


def batches(reply: Reply) -> Check:
    if reply.error is None:
        return Check("batches", "ok", "The list of batches can be read.")
    blocked = _blocked("batches", reply)
    if blocked is not None:
        return blocked
    wrong_place = reply.status in (None, *UNLISTED)  # no batches at this address: only another one helps
    check = failed("batches", reply.error)
    return msgspec.structs.replace(check, exit_code=ConfigError.exit_code) if wrong_place else check


def files(reply: Reply, batches: Reply) -> Check:
    """Some services take files and do not list them; nothing is uploaded to find out."""
    if reply.error is None:
        return Check("files", "ok", "The list of files can be read.")
    blocked = _blocked("files", reply)
    if blocked is not None:
        return blocked
    if reply.status in (None, *UNLISTED) and batches.error is None:
        said = "This service does not list files; whether it takes uploads shows with the first one."
        return Check("files", "skipped", said)
    return failed("files", reply.error)


def _blocked(name: str, reply: Reply) -> Check | None:
    """What another check has told the reason of."""
    if not reply.answered:
        return Check(name, "skipped", UNREACHED)
    return Check(name, "skipped", REFUSED) if reply.status == 401 else None


def model(name: str, one: Reply, listed: Reply | None) -> Check:
    """Whether the service knows a model, by its own word or by its list of models; not all services say."""
    if one.error is None and _model_ids(one.body):
        return Check("model", "ok", f"{one_line(name)} is known.")
    blocked = _blocked("model", one)
    if blocked is not None:
        return blocked
    unknown = _unknown(name)
    if one.code == "model_not_found":
        return unknown
    if one.error is not None and one.status not in (*UNLISTED, 403):
        return failed("model", one.error)
    ids = _model_ids(listed.body) if listed is not None and listed.error is None else ()
    if ids:
        return Check("model", "ok", f"{one_line(name)} is in the list of models.") if name in ids else unknown
    return Check("model", "skipped", "This service does not say which models it has, or not to this key.")


def _unknown(name: str) -> Check:
    said = f"The service does not know the model {one_line(name)!r}, or this key may not use it; ask for another."
    return Check("model", "failed", said, ConfigError.exit_code)


def wants_list(one: Reply) -> bool:
    """Whether the list of models could say what the look-up of one did not."""
    if one.error is None:
        return not _model_ids(one.body)
    return one.status in UNLISTED and one.code != "model_not_found"


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def _model_ids(body: bytes) -> tuple[str, ...]:
    """The ids in a model, in a list of models, or in the bare array that some services send; none in anything else."""
    try:
        seen = msgspec.json.decode(body, type=dict[str, Any] | list[_Model])
        if isinstance(seen, dict):
            shape: Any = _Models if "data" in seen else _Model
            whole = msgspec.convert(seen, shape)
            seen = whole.data if isinstance(whole, _Models) else [whole]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ()
    return tuple(one.id for one in seen)


def clock(replies: tuple[Reply, ...]) -> Check:
    skew_s = next((reply.skew_s for reply in replies if reply.skew_s is not None), None)
    if skew_s is None:
        return Check("clock", "skipped", "No answer told the service's time.")
    if abs(skew_s) <= CLOCK_S:
        return Check("clock", "ok", f"Within {CLOCK_S:.0f} s of the service's.")
    way = "ahead of" if skew_s > 0 else "behind"
    said = f"This machine's clock is {abs(skew_s):,.0f} s {way} the service's; set it, or certificates may be refused."
    return Check("clock", "warning", said)
