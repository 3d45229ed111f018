"""What a machine charges beside the operators: meeting, waking up, copying, locks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """Costs of a machine, in seconds and bytes.

    Attributes
    ----------
    barrier_seconds : float
        One barrier of replicas that arrive together, on one host.
    wake_seconds : float
        What a replica is late by that slept because another one kept it waiting.
    lock_seconds : float
        Taking and letting go of the lock of a loose run that nobody else wants.
    loop_seconds : float
        The step loop around its operators and barriers.
    message_seconds : float
        An exchange between two hosts, whatever its size.
    shared_bytes_per_second : float
        What a replica adds up of memory that another one has just written.
    network_bytes_per_second : float
        What an exchange of some megabytes between hosts carries.
    cores : int
        That the replicas share.

    Notes
    -----
    The defaults are orders of magnitude from one virtual machine with two cores.
    ``graph.measure`` measures barriers, waking, the lock and shared memory where they will be paid;
    what hosts charge for messages stays as given.
    """

    barrier_seconds: float = 10e-6
    wake_seconds: float = 60e-6
    lock_seconds: float = 4e-6
    loop_seconds: float = 3e-6
    message_seconds: float = 0.85e-3
    shared_bytes_per_second: float = 10e9
    network_bytes_per_second: float = 0.4e9
    cores: int = 1
