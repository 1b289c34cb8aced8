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
        raise storage_error(error) from error


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


def storage_error(error: OSError) -> StorageError:
    """One sentence for a disk that did not do what it was told."""
    why = os.strerror(error.errno) if error.errno else str(error)
    where = f" at {error.filename}" if error.filename else ""
    advice = "Free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Mend that"
    return StorageError(f"The disk failed{where}: {why}. {advice}, then run the same command again.")
