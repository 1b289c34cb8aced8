"""Two ways to run the server: in a thread of its own, and as a process that ends by a signal."""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import msgspec

from streambatch.errors import ConfigError
from streambatch.server.app import running
from streambatch.server.script import Script
from streambatch.server.service import Own
from streambatch.server.settings import Settings

log = logging.getLogger("streambatch.server")


class ThreadedServer:
    """A server in its own thread and event loop; a context manager. `url` ends in /v1; `api_key` opens it.

    Without a key in the settings it makes a random one. Entering raises `ConfigError` where the server can't run.
    """

    def __init__(self, settings: Settings, script: Script | None = None, answer: Own | None = None) -> None:
        key = settings.api_key if settings.api_key is not None else f"sk-local-{secrets.token_hex(16)}"
        self._settings = msgspec.structs.replace(settings, api_key=key)
        self._script, self._answer = script, answer
        self.api_key: str = key
        self.url = ""
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="streambatch-server", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def stop(self) -> None:
        """Close connections, end the work at hand, and join; within seconds. Twice does nothing."""
        if self._loop is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop closed between the question and the call
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def __enter__(self) -> "ThreadedServer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
            if self._ready.is_set():
                log.exception("the local server ended by a failure")
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with running(self._settings, self._script, self._answer) as self.url:
            self._ready.set()
            await self._stop.wait()


def serve(settings: Settings, script: Script, ready_file: Path | None, say: Callable[[str], None]) -> None:
    """Run until SIGINT or SIGTERM; `say` gets the base URL once connections are accepted."""
    log.addHandler(logging.StreamHandler())
    asyncio.run(_serve(settings, script, ready_file, say))


async def _serve(settings: Settings, script: Script, ready_file: Path | None, say: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(settings, script) as url:
        if ready_file is not None:
            _write_ready(ready_file, url)
        say(url)
        await stop.wait()


def _write_ready(path: Path, url: str) -> None:
    """The base URL under its name at once or not at all."""
    try:
        fd, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(fd, "w") as file:
            file.write(url + "\n")
        os.replace(part, path)
    except OSError as error:
        raise ConfigError(f"The ready file {path} can't be written: {error.strerror}.") from error
