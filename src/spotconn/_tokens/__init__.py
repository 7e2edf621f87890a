"""How a process serves tokens: the cache, the single flight, the refresh protocol, and what is not saved yet."""
