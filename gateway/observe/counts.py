"""Counters and histograms that cost a dictionary's look-up, for everything that is counted on the way of a call.

prometheus-client's own take a lock and several calls of Python for each sample, a tenth of what a whole call costs here.
The gateway counts on one thread, so plain numbers will do; what is scraped is made of them when it is asked for, as lines of
text at once: a page has thousands, and prometheus-client takes 5 us for each. Must not know what is counted.
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

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def _head(name: str, meaning: str, type_: str) -> str:
    return f"# HELP {name} {meaning}\n# TYPE {name} {type_}\n"


def _pairs(labels: tuple[str, ...], values: Labels) -> str:
    pairs = zip(labels, values, strict=True)
    return ",".join([f'{label}="{str(value).translate(_ESCAPES)}"' for label, value in pairs])


def _number(value: float) -> str:
    return repr(value) if value < 1e6 else floatToGoString(value)  # type: ignore[no-untyped-call]


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

    def text(self) -> str:
        """The same as Prometheus reads it."""
        name, meaning, labels = self._announced
        lines = [
            f"{name}_total{{{_pairs(labels, values)}}} {_number(amount)}\n" for values, amount in self.amounts.items()
        ]
        return _head(f"{name}_total", meaning, "counter") + "".join(lines)


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

    def text(self) -> str:
        """The same as Prometheus reads it."""
        name, meaning, labels = self._announced
        lines = [_head(name, meaning, "histogram")]
        for values, row in self._rows.items():
            pairs = _pairs(labels, values)
            before = f'{name}_bucket{{{pairs}{"," if pairs else ""}le="'
            sums = list(accumulate(row[:-1]))
            lines += [f'{before}{bound}"}} {_number(sum_)}\n' for bound, sum_ in zip(self._names, sums, strict=True)]
            own = f"{{{pairs}}}" if pairs else ""
            lines.append(f"{name}_count{own} {_number(sums[-1])}\n{name}_sum{own} {_number(row[-1])}\n")
        return "".join(lines)
