"""How long fuzzing lasts: the same examples every time; with STREAMBATCH_FUZZ=N other ones, N times as many."""

import os

from hypothesis import HealthCheck, settings

TIMES = os.environ.get("STREAMBATCH_FUZZ")
SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example, HealthCheck.filter_too_much)


def bounded(examples: int) -> settings:
    """So many examples, whatever machine it is."""
    return settings(
        max_examples=examples * (1 if TIMES is None else int(TIMES)),
        derandomize=TIMES is None,
        deadline=None,
        database=None,
        suppress_health_check=SLOW,
    )
