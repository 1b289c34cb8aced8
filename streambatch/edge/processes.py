"""Worker processes and the pipes to them, as their parent sees them. Blocking; knows no event loop and no job.

The child is a plain interpreter that imports what jobs need: `edge.jobs.serving`. It gets neither the user's `__main__`
nor open files nor secrets of the environment.
"""

import contextlib
import os
import subprocess
import sys
import threading

import msgspec

import streambatch
from streambatch import errors
from streambatch.core.jobs import Failed, Job, Manifest, Reply
from streambatch.edge.messages import receive, send
from streambatch.errors import StreambatchError

ATTEMPTS = 3  # of one job, each in a new process
LEAVING_S = 5.0  # a process that was told to leave
WORDS_BYTES = 64 << 10  # of stderr: as much as a pipe holds
# msgspec takes from typing_extensions what typing has too, at the price of a third of the start
BOOT = """import sys
sys.path[:] = sys.argv[1:]
sys.modules["typing_extensions"] = None
from streambatch.edge.jobs.serving import main
main()"""
SHOWN_CHARACTERS = 200  # of its last line, in our message
SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")

_encode = msgspec.msgpack.Encoder().encode
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


class Worker:
    """A place for one job at a time; a process that dies is replaced and its job done again.

    `call` belongs to one thread at a time, `kill` to any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._killed = False

    @property
    def pid(self) -> int | None:
        """None while there is no process: before the first job, or after it died."""
        return None if self._child is None else self._child.process.pid

    @property
    def killed(self) -> bool:
        """Whether it takes no more jobs."""
        return self._killed

    def start(self) -> None:
        """Start its process now, so that it is ready when the first job comes."""
        self._started()

    def call(self, job: Job) -> Manifest:
        """Does the job. Raises what the job raised; StreambatchError when it kills its processes, or was killed."""
        death = _DeathError(0, "")
        for _ in range(ATTEMPTS):
            child = self._started()
            try:
                return child.call(job)
            except _DeathError as error:
                death = error
                with self._lock:
                    self._child = None
        raise StreambatchError(
            f"A worker process died {ATTEMPTS} times at one job ({death}); run the same command again."
        )

    def kill(self) -> None:
        """End it at once, whatever it does; a thread inside `call` gets an error."""
        with self._lock:
            self._killed = True
            if self._child is not None:
                self._child.process.kill()

    def leave(self) -> None:
        """Tell its process, which is doing nothing, that there are no more jobs; `close` then waits less."""
        with self._lock:
            if self._child is not None:
                self._child.leave()

    def close(self) -> None:
        """Let it leave and wait until it has. Not while a thread is inside `call`, unless it was killed."""
        with self._lock:
            self._killed = True
            child, self._child = self._child, None
        if child is not None:
            child.close()

    def _started(self) -> "_Child":
        with self._lock:
            if self._killed:
                raise StreambatchError("A worker process was stopped in the middle of its job.")
            if self._child is None:
                self._child = _Child()
            return self._child


class _DeathError(Exception):
    """A process is gone without an answer."""

    def __init__(self, status: int, words: str) -> None:
        how = f"signal {-status}" if status < 0 else f"exit code {status}"
        last = words.strip().rpartition("\n")[2][-SHOWN_CHARACTERS:]
        super().__init__(f"{how}: {last}" if last else how)


class _Child:
    """One process and its pipes."""

    def __init__(self) -> None:
        self._words, end = os.pipe()
        os.set_blocking(end, False)  # a process that says too much loses words, it does not hang
        command = [sys.executable, "-I", "-S", "-c", BOOT, *_import_paths()]
        try:
            self.process = subprocess.Popen(
                command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=end, env=_environment()
            )
        except OSError as error:
            os.close(self._words)
            raise StreambatchError(f"A worker process can't be started: {error.strerror}.") from error
        finally:
            os.close(end)

    def call(self, job: Job) -> Manifest:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            send(self.process.stdin, _encode(job))
            answer = receive(self.process.stdout)
        except (BrokenPipeError, ConnectionResetError):
            answer = None
        if answer is None:
            raise self._death()
        reply = _replies.decode(answer)
        if isinstance(reply, Failed):
            raise _error_of(reply)
        return reply

    def leave(self) -> None:
        """Close its stdin, at which it leaves."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def close(self) -> None:
        """Let it leave, and wait until it is gone."""
        assert self.process.stdout is not None
        self.leave()
        self.process.stdout.close()
        try:
            self.process.wait(LEAVING_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._words)

    def _death(self) -> _DeathError:
        self.process.kill()  # it may live on without its pipes
        status = self.process.wait()
        os.set_blocking(self._words, False)
        words = b""
        with contextlib.suppress(BlockingIOError):  # a grandchild may hold the other end
            words = os.read(self._words, WORDS_BYTES)
        self.close()
        return _DeathError(status, words.decode(errors="replace"))


def _import_paths() -> list[str]:
    """What this process can import, the child can: as absolute paths, our own package for certain."""
    paths = [os.path.abspath(path) for path in sys.path]
    ours = os.path.dirname(os.path.dirname(os.path.abspath(streambatch.__file__)))
    return list(dict.fromkeys([*paths, ours]))


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not any(word in k.upper() for word in SECRETS)}


def _error_of(failed: Failed) -> Exception:
    kind = getattr(errors, failed.kind, None)
    if kind is errors.SourceError:
        return errors.SourceError(failed.message, path=failed.path, line=failed.line)
    if isinstance(kind, type) and issubclass(kind, StreambatchError):
        return kind(failed.message)
    return RuntimeError(f"A job failed in a worker process:\n{failed.message}")
