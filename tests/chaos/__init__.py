"""Chaos: the real command as a process against the real server as another, disturbed by a seeded plan until it is finished."""
