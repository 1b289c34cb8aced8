"""Text of a service or a file, made safe to show on a terminal. Knows nothing of what it says."""


def one_line(text: str) -> str:
    """Control characters become spaces, several lines become one, runs of white space one space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
