"""Effects: everything that touches disk, network or time. Holds no policy."""
