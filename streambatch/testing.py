"""For our users' own tests: a local batch server in a thread, and a pytest fixture around it."""
