"""Signals while work does not end by itself: the second one leaves at once, and the first one only waits so long."""

import signal
import subprocess
import sys
import time

import pytest

from .tools import environment

STUBBORN = """
import anyio
from streambatch.cli import visit

visit.PATIENCE_S = {patience}

async def work():
    with anyio.CancelScope(shield=True):
        print("at work", flush=True)
        await anyio.sleep_forever()

anyio.run(visit.until_signal, work)
"""


def stubborn(patience: float) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN.format(patience=patience)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    return process


@pytest.mark.process
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_leaves_at_once(number: signal.Signals, code: int) -> None:
    with stubborn(60) as process:
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(number)
        assert process.wait(10) == code


@pytest.mark.process
def test_a_stop_that_hangs_is_cut_short() -> None:
    with stubborn(0.5) as process:
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=10)
        assert time.monotonic() - began >= 0.5
        assert process.returncode == 143
        assert err.count("\n") == 1
        assert "its journal is safe" in err
