"""Runs in virtual time: the same rule of promises and the same arithmetic, on a made-up cluster."""

from flowml.simulate.models import Compute, Faults, Network, Timed

__all__ = ["Compute", "Faults", "Network", "Timed"]
