"""What the config promises, as it stands now: routes (what callers ask for), upstreams and their replicas (where it goes).

State lives here and nowhere else: who is how busy, who is out, what may still be tried again. What a call borrows is a
Lease, settled once, synchronously, with what came of it. Must not know HTTP messages, callers or metrics.
"""

from gateway.fleet.lease import Lease
from gateway.fleet.replica import Endpoint, Replica, Standing
from gateway.fleet.routes import Fleet, Hedge, Route, Target, by_weight
from gateway.fleet.upstream import Rules, Timeouts, Upstream

__all__ = [
    "Endpoint",
    "Fleet",
    "Hedge",
    "Lease",
    "Replica",
    "Route",
    "Rules",
    "Standing",
    "Target",
    "Timeouts",
    "Upstream",
    "by_weight",
]
