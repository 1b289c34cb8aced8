"""Decisions: pure functions and frozen nouns. No await, clock, randomness, files or sockets."""
