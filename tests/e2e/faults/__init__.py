"""The matrix of faults: what a service can do to a run, and what the run makes of it. `python -m tests.e2e.faults` writes
the page."""
