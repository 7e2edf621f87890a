"""Random faults of database, network, Spotify and callers over several processes, and what must hold all the same.

`python -m chaos --seconds 60 --seed 1`, or `make chaos SECONDS=60 SEED=1`.
"""
