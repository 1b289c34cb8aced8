"""What a worker process runs: one job after the other from stdin, their manifests to stdout, until stdin closes.

Imports no event loop, no HTTP and no terminal; a test holds it to that.
"""

import gc
import os
import signal

import msgspec

from streambatch.core.jobs import Failed, Job, Reply
from streambatch.edge.heap import keep_heap
from streambatch.edge.jobs import run_job
from streambatch.edge.messages import receive, send
from streambatch.errors import SourceError, StreambatchError

_encode = msgspec.msgpack.Encoder().encode
_jobs = msgspec.msgpack.Decoder(Job)


def main() -> None:
    """Serve until the parent is gone. Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()
    gc.freeze()
    keep_heap()
    with open(os.dup(0), "rb", buffering=0) as jobs, open(os.dup(1), "wb", buffering=0) as replies:
        os.dup2(2, 1)  # what anything prints is no reply
        while (message := receive(jobs)) is not None:
            send(replies, _encode(answer(_jobs.decode(message))))
            gc.collect()
    os._exit(0)  # nothing is buffered, and tidying up takes longer than some jobs


def answer(job: Job) -> Reply:
    """The job's manifest, or how it failed."""
    try:
        return run_job(job)
    except SourceError as error:
        return Failed("SourceError", str(error), error.path, error.line)
    except StreambatchError as error:
        return Failed(type(error).__name__, str(error))
    except Exception:  # noqa: BLE001 - the parent raises it as the bug it is
        import traceback

        return Failed("bug", traceback.format_exc())
