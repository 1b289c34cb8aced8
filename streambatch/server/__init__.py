"""The local OpenAI-compatible batch server: a stranger to the engine, so that it can disagree with it."""

import logging

LOG = logging.getLogger("streambatch.server")
LOG.addHandler(logging.NullHandler())  # inside a run it speaks to whoever asks for its log; `serve` shows it
