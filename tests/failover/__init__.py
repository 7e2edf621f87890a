"""Failovers of real servers by each way of connecting, what callers notice of them, and what must hold.

`python -m failover`, or `make failover`; `--short` for the form of two servers that `make check` runs.
"""
