"""Jobs: prepare, remainder, settle, merge. Blocking; files in, files and a small manifest out.

Imports each kind when it is first asked for, so that a worker holds only what it needs.
"""

import errno
import os

from streambatch.core.jobs import Job, Manifest, Merge, Prepare, Remainder, Settle
from streambatch.errors import StorageError


def run_job(job: Job) -> Manifest:
    """Does the job here and now. Raises SourceError for inputs, StorageError for the run's own files."""
    try:
        return _run(job)
    except OSError as error:
        raise storage_error(error, _place(job)) from error


def _place(job: Job) -> str | None:
    """The beginning of the names that the job writes under: the system does not say which write failed."""
    match job:
        case Prepare(prefix=name) | Remainder(stem=name) | Settle(stem=name) | Merge(out=name):
            return name
    return None


def _run(job: Job) -> Manifest:
    match job:
        case Prepare():
            from streambatch.edge.jobs.prepare import prepare

            return prepare(job)
        case Remainder():
            from streambatch.edge.jobs.remainder import make_remainder

            return make_remainder(job)
        case Settle():
            from streambatch.edge.jobs.settle import settle

            return settle(job)
        case Merge():
            from streambatch.edge.jobs.merge import merge

            return merge(job)
        case _:
            from streambatch.edge.jobs.joining import run_join

            return run_join(job)


def storage_error(error: OSError, place: str | None = None) -> StorageError:
    """One sentence for a disk that did not do what it was told, at a file or at `place`."""
    why = os.strerror(error.errno) if error.errno else str(error)
    name = error.filename if error.filename else place
    where = f" at {name}" if name else ""
    advice = "Free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Mend that"
    return StorageError(f"The disk failed{where}: {why}. {advice}, then run the same command again.")
