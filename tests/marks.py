"""Named scenarios: those that break a promise still, and those that did once."""

import pytest

fixed = pytest.mark.fixed


def broken(promise: str) -> pytest.MarkDecorator:
    """A known hole: the test must fail, with an assertion, until it is mended; one that passes by accident fails the suite."""
    return pytest.mark.xfail(strict=True, raises=AssertionError, reason=f"broken: {promise}")
