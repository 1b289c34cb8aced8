"""The local OpenAI-compatible batch server: a stranger to the engine, so that it can disagree with it."""
