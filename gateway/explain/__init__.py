"""`gateway explain`: which way a request for a model would go, in words.

`plan` tells it from the config alone, `readings` adds how a running gateway stands. Neither serves anything.
"""

from gateway.explain.plan import UnknownModel, explained
from gateway.explain.readings import Readings, UnreadableMetrics, read

__all__ = ["Readings", "UnknownModel", "UnreadableMetrics", "explained", "read"]
