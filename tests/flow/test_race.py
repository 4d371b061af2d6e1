"""Two attempts at one call: one is served, nothing is left of the other, whenever it is cut off.

A loop that goes round when it is told to decides what happens in the same moment. The attempts are real, and hold a real
replica, which says what was not given back; what they would have sent and received is a number of rounds.
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import errors
from gateway.admission import ConcurrencySettings
from gateway.call import Exchange
from gateway.dialects import DIALECTS
from gateway.fleet import Endpoint, Lease, Replica, Rules, Timeouts, Upstream
from gateway.flow.attempt import Attempt, Until
from gateway.flow.hedge import Trying, race
from gateway.policy.balance import LeastLoad
from gateway.policy.breaker import Breaker, BreakerSettings
from gateway.policy.retry import RetrySettings
from tests.support.stepped import SteppedLoop, stepped

AFTER = 2.0  # seconds until the second one begins
NEVER = 1000  # rounds


class Way(NamedTuple):
    """How an attempt goes: after so many rounds it `ends`, with a reply or with an exception.

    `leaving`: rounds that it takes to give back what it holds.
    """

    rounds: int
    ends: BaseException | None = None
    leaving: int = 0


def failure(message: str = "It failed.") -> errors.UpstreamError:
    return errors.UpstreamError(message)


class Body(httpx.AsyncByteStream):
    """What a reply is read from: closed, it has given its connection back."""

    def __init__(self) -> None:
        self.closed = False

    async def aclose(self) -> None:
        self.closed = True


class Scene:
    """One replica, the attempts that are made there, and what came of them."""

    def __init__(self, loop: SteppedLoop) -> None:
        self.loop = loop
        self.begun: list[str] = []
        self.attempts: dict[str, Attempt] = {}
        self.bodies: list[Body] = []
        endpoint = Endpoint("http://up:8000/v1", DIALECTS["openai"](), [])
        breaker = Breaker(BreakerSettings(), lambda: 0.5)
        self.replica = Replica(endpoint, breaker, loop.time, 30.0)
        rules = Rules(Timeouts(), RetrySettings(), ConcurrencySettings(), LeastLoad(), breaker)
        transport = httpx.MockTransport(lambda _: httpx.Response(500))
        self.upstream = Upstream("up", DIALECTS["openai"](), [self.replica], transport, rules)

    def trying(self, name: str, way: Way) -> Trying:
        async def attempt() -> Attempt:
            self.begun.append(name)
            self.replica.inflight += 1
            lease = Lease(self.upstream, self.replica, "m", self.loop.now, learns=True)
            exchange = Exchange("r-1", "chat", self.loop.now)
            made = Attempt(self.upstream, lease, exchange, Until(0, 0), self.loop.time)
            self.attempts[name] = made
            self.bodies.append(Body())
            made.response = httpx.Response(200, stream=self.bodies[-1])
            try:
                await rounds(way.rounds)
                if way.ends is not None:
                    raise way.ends
            except BaseException:
                try:
                    await rounds(way.leaving)
                finally:
                    await made.discard()
                raise
            return made

        return attempt

    def race(self, first: Way, second: Way | None = None, after: float | None = AFTER) -> asyncio.Task[Attempt]:
        """Begin. `second`: None where there is no place for it."""
        beside = None if second is None else self.trying("second", second)
        return self.run(race(self.trying("first", first), lambda: beside, after))

    def run(self, coroutine: Coroutine[Any, Any, Attempt]) -> asyncio.Task[Attempt]:
        return self.loop.create_task(coroutine, name="race")

    def wait(self) -> None:
        """Until the second one begins."""
        self.loop.settle()
        self.loop.now += AFTER
        self.loop.settle()

    @property
    def served(self) -> str:
        """The attempt that holds a place, and the only one."""
        assert self.replica.inflight == self.open == 1
        (name,) = (name for name, attempt in self.attempts.items() if not attempt.exchange.tries)
        return name

    @property
    def open(self) -> int:
        """Connections that are held."""
        return sum(not body.closed for body in self.bodies)

    @property
    def nothing_left(self) -> bool:
        return self.replica.inflight == self.open == 0 and asyncio.all_tasks(self.loop) == set()


async def rounds(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def outcome(loop: SteppedLoop, task: asyncio.Task[Attempt]) -> Attempt:
    loop.settle()
    assert task.done()
    return task.result()


# Who is served.


def test_the_first_is_served_and_there_is_no_second_if_it_is_quick_enough() -> None:
    with stepped() as loop:
        scene = Scene(loop)
        task = scene.race(Way(5), Way(0))
        assert outcome(loop, task) is scene.attempts["first"]
        assert scene.begun == ["first"]
        assert scene.served == "first"


def test_the_second_begins_when_the_time_is_up_and_not_before() -> None:
    with stepped() as loop:
        scene = Scene(loop)
        task = scene.race(Way(NEVER), Way(3))
        loop.settle()
        loop.now += AFTER - 0.001
        loop.settle()
        assert scene.begun == ["first"]
        loop.now += 0.001
        assert outcome(loop, task) is scene.attempts["second"]
        assert scene.begun == ["first", "second"]


def test_the_first_that_speaks_after_all_is_served_and_the_second_is_cancelled() -> None:
    with stepped() as loop:
        scene = Scene(loop)
        task = scene.race(Way(35), Way(NEVER))
        scene.wait()
        assert outcome(loop, task) is scene.attempts["first"]
        assert scene.begun == ["first", "second"]
        assert scene.served == "first"


def test_the_second_that_speaks_first_is_served_and_the_first_is_cancelled() -> None:
    with stepped() as loop:
        scene = Scene(loop)
        task = scene.race(Way(NEVER), Way(1, leaving=3))
        scene.wait()
        assert outcome(loop, task) is scene.attempts["second"]
        assert scene.served == "second"


def test_without_a_time_there_is_never_a_second() -> None:
    with stepped() as loop:
        scene = Scene(loop)
        task = scene.race(Way(50), Way(0), after=None)
        loop.settle()
        loop.now += 1e6
        loop.settle()
        assert outcome(loop, task) is scene.attempts["first"]
        assert scene.begun == ["first"]


def test_where_there_is_no_place_for_a_second_the_first_is_waited_for() -> None:
    with stepped() as loop:
        scene = Scene(loop)
        task = scene.race(Way(40), None)
        scene.wait()
        assert outcome(loop, task) is scene.attempts["first"]
        assert scene.begun == ["first"]


def test_a_place_for_a_second_is_looked_for_once_and_only_when_it_is_time() -> None:
    asked: list[float] = []
    with stepped() as loop:
        scene = Scene(loop)

        def beside() -> None:
            asked.append(loop.now)

        began_at = loop.now
        task = scene.run(race(scene.trying("first", Way(45)), beside, AFTER))
        scene.wait()
        loop.now += AFTER
        assert outcome(loop, task) is scene.attempts["first"]
        assert asked == [began_at + AFTER]


# Who fails.


def test_a_first_that_fails_early_is_told_at_once_and_not_hedged() -> None:
    with stepped() as loop:
        scene = Scene(loop)
        task = scene.race(Way(2, failure()), Way(0))
        with pytest.raises(errors.UpstreamError, match=r"It failed\."):
            outcome(loop, task)
        assert scene.begun == ["first"]
        assert scene.nothing_left


@pytest.mark.parametrize(("first", "second"), [(22, 40), (60, 1), (22, 1)])
def test_one_that_fails_leaves_the_other_to_be_waited_for(first: int, second: int) -> None:
    for ways, served in (
        ((Way(first, failure()), Way(second)), "second"),
        ((Way(first), Way(second, failure())), "first"),
    ):
        with stepped() as loop:
            scene = Scene(loop)
            task = scene.race(*ways)
            scene.wait()
            loop.settle()
            assert outcome(loop, task) is scene.attempts[served]
            assert scene.begun == ["first", "second"]
            assert scene.served == served


@pytest.mark.parametrize(("first", "second", "told"), [(22, 10, "second"), (35, 1, "first")])
def test_when_both_fail_the_last_failure_is_told(first: int, second: int, told: str) -> None:
    with stepped() as loop:
        scene = Scene(loop)
        task = scene.race(Way(first, failure("first")), Way(second, failure("second")))
        scene.wait()
        with pytest.raises(errors.UpstreamError) as caught:
            outcome(loop, task)
        assert caught.value.message == told
        assert scene.nothing_left


@pytest.mark.parametrize("which", ["first", "second"])
def test_what_is_the_callers_fault_is_told_at_once_and_the_other_is_cancelled(which: str) -> None:
    rejected = errors.UpstreamRejected("Too long.", status=400, code=None, param=None)
    with stepped() as loop:
        scene = Scene(loop)
        task = (
            scene.race(Way(25, rejected), Way(NEVER)) if which == "first" else scene.race(Way(NEVER), Way(5, rejected))
        )
        scene.wait()
        assert task.exception() is rejected
        assert scene.begun == ["first", "second"]
        assert scene.nothing_left


@contextlib.contextmanager
def in_one_moment(
    first: BaseException | None, second: BaseException | None
) -> Iterator[tuple[Scene, asyncio.Task[Attempt]]]:
    """A race of which both end in the same round of the loop, and what has come of it."""
    with stepped() as loop:
        scene = Scene(loop)
        gate = loop.create_future()

        def trying(name: str, ends: BaseException | None) -> Trying:
            begin = scene.trying(name, Way(0, ends))

            async def attempt() -> Attempt:
                await asyncio.shield(gate)
                return await begin()

            return attempt

        task = scene.run(race(trying("first", first), lambda: trying("second", second), AFTER))
        scene.wait()
        assert scene.begun == []
        gate.set_result(None)
        while not task.done():
            loop.step()
        assert scene.replica.inflight <= 1, "it is told before all that came of it is known"
        loop.settle()
        yield scene, task


def test_of_two_that_speak_in_the_same_moment_one_is_served_and_the_other_given_back() -> None:
    with in_one_moment(None, None) as (scene, task):
        assert task.result() is scene.attempts[scene.served]


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_failure_in_the_same_moment_as_a_reply_is_not_told(which: str) -> None:
    ends = (failure(), None) if which == "second" else (None, failure())
    with in_one_moment(*ends) as (scene, task):
        assert task.result() is scene.attempts[which]
        assert scene.served == which


def test_two_failures_in_the_same_moment_are_one_failure() -> None:
    with in_one_moment(failure("first"), failure("second")) as (scene, task):
        with pytest.raises(errors.UpstreamError):
            task.result()
        assert scene.nothing_left


# What is a fault of ours.


def test_a_fault_of_ours_in_the_first_is_not_taken_for_a_failure() -> None:
    with stepped() as loop:
        scene = Scene(loop)
        task = scene.race(Way(1, KeyError("bug")), Way(0))
        with pytest.raises(KeyError):
            outcome(loop, task)
        assert scene.nothing_left


@pytest.mark.parametrize("which", [0, 1])
def test_a_fault_of_ours_beside_an_attempt_ends_that_one_too(which: int) -> None:
    with stepped() as loop:
        scene = Scene(loop)
        silent, wrong = Way(NEVER, leaving=2), Way(30 - 29 * which, KeyError("bug"))
        task = scene.race(silent, wrong) if which else scene.race(wrong, silent)
        scene.wait()
        with pytest.raises(KeyError):
            outcome(loop, task)
        assert scene.nothing_left


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_fault_of_ours_in_the_same_moment_as_a_reply_leaves_no_reply_behind(which: str) -> None:
    bug = KeyError("bug")
    ends = (bug, None) if which == "first" else (None, bug)
    with in_one_moment(*ends) as (scene, task):
        if task.exception() is None:
            assert task.result() is scene.attempts[scene.served]
        else:
            assert task.exception() is bug
            assert scene.nothing_left


def test_a_fault_of_ours_in_looking_for_a_second_ends_the_first() -> None:
    def beside() -> Trying | None:
        raise KeyError("bug")

    with stepped() as loop:
        scene = Scene(loop)
        task = scene.run(race(scene.trying("first", Way(NEVER)), beside, AFTER))
        scene.wait()
        with pytest.raises(KeyError):
            outcome(loop, task)
        assert scene.nothing_left


# Being cut off.


@pytest.mark.parametrize("round_", range(6))
def test_a_race_that_is_cut_off_at_once_leaves_nothing(round_: int) -> None:
    with stepped() as loop:
        scene = Scene(loop)
        task = scene.race(Way(NEVER, leaving=1), Way(NEVER))
        loop.step(round_)
        task.cancel()
        loop.settle()
        assert task.cancelled()
        assert scene.nothing_left


@pytest.mark.parametrize("round_", range(6))
def test_a_race_that_is_cut_off_as_the_second_begins_leaves_nothing(round_: int) -> None:
    with stepped() as loop:
        scene = Scene(loop)
        task = scene.race(Way(NEVER, leaving=1), Way(NEVER, leaving=2))
        loop.settle()
        loop.now += AFTER
        loop.step(round_)
        task.cancel()
        loop.settle()
        assert task.cancelled()
        assert scene.nothing_left


@pytest.mark.parametrize("round_", range(12))
def test_a_reply_that_came_before_the_caller_left_is_given_back(round_: int) -> None:
    with stepped() as loop:
        scene = Scene(loop)
        task = scene.race(Way(NEVER, leaving=4), Way(1))
        loop.settle()
        loop.now += AFTER
        loop.step(round_)
        if task.cancel():
            loop.settle()
            assert task.cancelled()
            assert scene.nothing_left
        else:
            assert scene.served == "second"


WAYS = st.builds(
    Way, st.integers(0, 8), st.sampled_from([None, None, failure(), KeyError("bug")]), leaving=st.integers(0, 4)
)


@given(
    first=WAYS,
    second=st.none() | WAYS,
    due=st.integers(0, 8),
    cut=st.none() | st.integers(0, 24),
    after=st.sampled_from([AFTER, None]),
)
@settings(deadline=None, max_examples=500)
def test_whatever_happens_one_reply_at_most_is_held_and_all_else_is_given_back(
    first: Way, second: Way | None, due: int, cut: int | None, after: float | None
) -> None:
    with stepped() as loop:
        scene = Scene(loop)
        task = scene.race(first, second, after)
        for round_ in range(40):
            if round_ == due:
                loop.now += AFTER
            if round_ == cut:
                task.cancel()
            loop.step()
        assert task.done()
        if task.cancelled() or task.exception() is not None:
            assert scene.nothing_left
            assert task.cancelled() or task.exception() in (first.ends, None if second is None else second.ends)
        else:
            assert task.result() is scene.attempts[scene.served]
            assert asyncio.all_tasks(loop) == set()
