"""The last step of a run, and its undoing: partials get their final names, or a finished run is opened again.

Intent before effect here too: what will be published is journaled first, so a crash between two renames is completed.
"""

import os
from pathlib import Path

from streambatch.core import events as e
from streambatch.edge import files as disk
from streambatch.edge import lookbacks
from streambatch.edge.files import Blocking, RunFiles
from streambatch.edge.journal import Journal, Store
from streambatch.errors import ConfigError


class Publisher:
    """Moves the two partials of one run. `output` is an absolute path, or "-" for stdout; what others made there is written
    over with `overwrite` alone."""

    def __init__(self, output: str, files: RunFiles, journal: Journal, blocking: Blocking, *, overwrite: bool) -> None:
        self._output = output
        self._overwrite = overwrite
        self._files = files
        self._journal = journal
        self._blocking = blocking

    @property
    def errors(self) -> str:
        """Where the errors file stands when all is done."""
        return errors_name(self._output, str(self._files.folder))

    async def publish(self, exit_code: int) -> None:
        """Errors first, OUTPUT last: who sees OUTPUT sees all of it. Raises StorageError, ConfigError."""
        await self._refuse_foreign()
        intent = await self._journal.read(Store.last, e.Publishing)
        if intent is None:
            intent = await self._intent()
            await self._journal.append(intent)
        await self._rename(self._files.errors, self.errors, intent.errors_hash)
        if self._output == "-":
            await self._blocking(disk.send_to_stdout, self._files.output)
        else:
            await self._rename(self._files.output, self._output, intent.output_hash)
        await self._journal.append(e.Published(exit_code=exit_code))

    async def _intent(self) -> e.Publishing:
        return e.Publishing(
            output_bytes=os.path.getsize(self._files.output),
            output_hash=await self._blocking(disk.hash_file, self._files.output),
            errors_bytes=os.path.getsize(self._files.errors),
            errors_hash=await self._blocking(disk.hash_file, self._files.errors),
        )

    async def _refuse_foreign(self) -> None:
        """What came to stand at our names while the run worked is somebody's. Raises ConfigError."""
        if self._overwrite:
            return
        earlier = await self._journal.read(lookbacks.published_before)
        now = await self._journal.read(Store.last, e.Publishing)  # a copy or a rename that was cut may leave both names
        mine = [intent for intent in (earlier, now) if intent is not None]
        pairs = [(self._files.errors, self.errors, [intent.errors_hash for intent in mine])]
        if self._output != "-":
            pairs.append((self._files.output, self._output, [intent.output_hash for intent in mine]))
        for partial, final, known in pairs:
            if not partial.exists() or not os.path.lexists(final) or await self._hash_of(final) in known:
                continue
            if await self._hash_of(final) != await self._hash_of(
                str(partial)
            ):  # else an earlier life of this run published it
                raise ConfigError(
                    f"{final} came to be while this run worked, and was not made by it; move it away, or use --if-exists overwrite,"
                    " then run the same command again: the answers are kept."
                )

    async def _hash_of(self, path: str) -> str | None:
        return await self._blocking(disk.hash_file, path) if os.path.isfile(path) else None

    async def _rename(self, partial: Path, final: str, digest: str) -> None:
        if partial.exists():
            await self._blocking(disk.publish, partial, final)
        else:
            await self._check(final, digest)

    async def _check(self, final: str, digest: str) -> None:
        if not os.path.exists(final):
            opened = await self._journal.read(Store.last, e.Opened)
            if opened is not None and opened.output not in ("", self._output):
                raise ConfigError(
                    f"This run was published as {_told(opened.output)}, and {_told(self._output)} is named now; use the first -o,"
                    " or another --run-dir to start a new run."
                )
            raise ConfigError(f"{final} was published by this run and is gone; restore it{await self._otherwise()}")
        if await self._blocking(disk.hash_file, final) != digest:
            raise ConfigError(f"{final} was changed since this run published it; restore it{await self._otherwise()}")

    async def _otherwise(self) -> str:
        started = await self._journal.read(Store.last, e.Started)
        known = "" if started is None else started.run_id
        return (
            f", or get its answers again with --run-id {known} and an empty --run-dir: what the service still has is not bought"
            " again."
        )

    async def check(self) -> None:
        """Both published files must still be what was published. Raises ConfigError."""
        intent = await self._journal.read(Store.last, e.Publishing)
        if intent is None:
            raise ConfigError(f"The journal in {self._files.folder} says nothing of what was published; start anew.")
        await self._check(self.errors, intent.errors_hash)
        if self._output != "-":
            await self._check(self._output, intent.output_hash)

    async def reopen(self) -> None:
        """Make partials of the published files again, so that more rows can follow. Raises ConfigError."""
        await self.check()
        for final, partial in ((self.errors, self._files.errors), (self._output, self._files.output)):
            if final != "-" and not partial.exists():
                await self._blocking(disk.copy_durably, final, partial)
                os.chmod(partial, 0o600)
        await self._journal.append(e.Reopened())


def _told(output: str) -> str:
    return "stdout" if output == "-" else output


def errors_name(output: str, run_dir: str) -> str:
    """`OUTPUT.errors`; in the run directory where OUTPUT is stdout."""
    return os.path.join(run_dir, "errors.jsonl") if output == "-" else f"{output}.errors"
