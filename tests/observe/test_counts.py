"""Our counters and histograms say, of the same samples, to the letter what prometheus-client's own would say."""

import prometheus_client
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest

from gateway.observe.counts import Counter, Histogram
from tests.observe.pages import read

BOUNDS = (0.005, 0.01, 1, 2.5, 600)
SAMPLES = st.sampled_from([0.0, 0.004, 0.005, 0.0051, 1, 2.5, 2.6, 600, 601.0, 1e9]) | st.floats(0, 1e12)
LABELS = st.tuples(st.sampled_from(['a "quoted" one', "b\n", "back\\slash"]), st.sampled_from(["200", "503"]))
NAMES = ("model", "status")

disable_created_metrics()  # type: ignore[no-untyped-call]  # as the gateway does


@given(st.lists(st.tuples(LABELS, SAMPLES)))
def test_a_histogram_is_scraped_as_the_librarys_is(samples: list[tuple[tuple[str, str], float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = Histogram("seconds", "How long.", NAMES, BOUNDS)
    ours.register(mine)
    reference = prometheus_client.Histogram("seconds", "How long.", NAMES, buckets=BOUNDS, registry=theirs)
    for labels, sample in samples:
        mine.observe(labels, sample)
        reference.labels(*labels).observe(sample)
    assert generate_latest(ours) == generate_latest(theirs)
    assert read(mine.text()) == read(generate_latest(theirs).decode())


@given(st.lists(st.tuples(LABELS, SAMPLES)))
def test_a_counter_is_scraped_as_the_librarys_is(samples: list[tuple[tuple[str, str], float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = Counter("tokens", "How many.", NAMES)
    ours.register(mine)
    reference = prometheus_client.Counter("tokens", "How many.", NAMES, registry=theirs)
    for labels, sample in samples:
        mine.amounts[labels] += sample
        reference.labels(*labels).inc(sample)
    assert generate_latest(ours) == generate_latest(theirs)
    assert read(mine.text()) == read(generate_latest(theirs).decode())
