"""Counters and histograms that cost a dictionary's look-up, for everything that is counted on the way of a call.

prometheus-client's own take a lock and several calls of Python for each sample, a tenth of what a whole call costs here.
The gateway counts on one thread, so plain numbers will do; what is scraped is made of them when it is asked for. Must not
know what is counted.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Labels = tuple[str | int, ...]
Amounts = defaultdict[Labels, float]


class Counter(Collector):
    """Amounts by the values of their labels: `counter.amounts[values] += 1`."""

    def __init__(self, name: str, meaning: str, labels: tuple[str, ...]) -> None:
        self._announced = (name, meaning, labels)
        self.amounts: Amounts = defaultdict(float)

    def collect(self) -> Iterator[Metric]:
        """The family, as it stands."""
        name, meaning, labels = self._announced
        family = CounterMetricFamily(name, meaning, labels=labels)
        for values, amount in list(self.amounts.items()):
            family.add_metric([str(value) for value in values], amount)
        yield family


class Histogram(Collector):
    """Samples by the values of their labels, counted in buckets. `bounds`: the buckets' upper ends, in order, finite."""

    def __init__(self, name: str, meaning: str, labels: tuple[str, ...], bounds: tuple[float, ...]) -> None:
        self._announced = (name, meaning, labels)
        self._bounds = bounds
        self._names = [*map(floatToGoString, bounds), "+Inf"]
        self._rows: dict[Labels, list[float]] = {}  # a count for each bucket, and the sum

    def observe(self, values: Labels, sample: float) -> None:
        """One more."""
        row = self._rows.get(values)
        if row is None:
            row = self._rows[values] = [0.0] * (len(self._bounds) + 2)
        row[bisect_left(self._bounds, sample)] += 1
        row[-1] += sample

    def collect(self) -> Iterator[Metric]:
        """The family, as it stands."""
        name, meaning, labels = self._announced
        family = HistogramMetricFamily(name, meaning, labels=labels)
        for values, row in list(self._rows.items()):
            buckets = list(zip(self._names, accumulate(row[:-1]), strict=True))
            family.add_metric([str(value) for value in values], buckets, row[-1])
        yield family
