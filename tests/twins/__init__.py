"""In-memory twins of the edge: same contracts, no sockets, no threads, any event loop, any clock."""
