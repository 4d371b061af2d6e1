"""The queue for a place: in order, short, not for long; and no place is lost or given twice, whatever happens at once.

A loop that goes round when it is told to decides what happens in the same moment.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import inf
from typing import Any

import httpx
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.admission import ConcurrencySettings, Queue
from gateway.dialects import DIALECTS
from gateway.errors import Overloaded
from gateway.fleet import Endpoint, Replica, Rules, Timeouts, Upstream
from gateway.policy.balance import LeastLoad
from gateway.policy.breaker import Breaker, BreakerSettings
from gateway.policy.retry import RetrySettings
from tests.support.stepped import SteppedLoop, stepped

WAIT = 1.0  # seconds
Waiting = asyncio.Task[str]


class Scene:
    """A queue of places that have names, who waits in it, and what was given back."""

    def __init__(self, loop: SteppedLoop, length: int = 3) -> None:
        self.loop = loop
        self.returned: list[str] = []
        self.queue: Queue[str] = Queue(ConcurrencySettings(1, length, WAIT), self._give_back)

    def _give_back(self, place: str) -> None:
        if not self.queue.hand(place):
            self.returned.append(place)

    def wait(self, until: float = inf, places: str = "abcd") -> Waiting:
        """One more waits for one of these places, no longer than until then."""
        task = self.loop.create_task(self.queue.turn(until, lambda place: place in places))
        self.loop.settle()
        return task


@pytest.fixture
def loop() -> Iterator[SteppedLoop]:
    with stepped() as made:
        yield made


@pytest.fixture
def scene(loop: SteppedLoop) -> Scene:
    return Scene(loop)


def is_refused(task: Waiting) -> bool:
    return task.done() and not task.cancelled() and isinstance(task.exception(), Overloaded)


# In order, bounded in length and time.


def test_a_place_goes_to_whoever_has_waited_longest(scene: Scene) -> None:
    tasks = [scene.wait() for _ in range(3)]
    assert len(scene.queue) == 3
    assert scene.queue.hand("a")
    assert scene.queue.hand("b")
    assert len(scene.queue) == 1
    scene.loop.settle()
    assert [task.done() for task in tasks] == [True, True, False]
    assert [task.result() for task in tasks[:2]] == ["a", "b"]
    assert scene.queue.hand("c")
    assert not scene.queue.hand("d")


def test_where_nobody_waits_a_place_is_not_taken(scene: Scene) -> None:
    assert not scene.queue
    assert not scene.queue.hand("a")


def test_a_place_goes_to_the_first_for_whom_it_will_do(scene: Scene) -> None:
    picky, easy = scene.wait(places="b"), scene.wait()
    assert scene.queue.hand("a")
    scene.loop.settle()
    assert easy.result() == "a"
    assert not scene.queue.hand("c")
    assert len(scene.queue) == 1
    assert scene.queue.hand("b")
    scene.loop.settle()
    assert picky.result() == "b"


def test_a_place_that_one_who_leaves_was_given_goes_to_the_next_for_whom_it_will_do(scene: Scene) -> None:
    leaving, picky, easy = scene.wait(), scene.wait(places="b"), scene.wait()
    scene.queue.hand("a")
    leaving.cancel()
    scene.loop.settle()
    assert easy.result() == "a"
    assert not picky.done()


def test_whether_one_more_may_wait_can_be_known_beforehand(scene: Scene) -> None:
    for _ in range(3):
        assert scene.queue.has_room
        scene.wait()
    assert not scene.queue.has_room


def test_one_more_than_may_wait_is_refused_at_once_and_told_when_to_come_back(scene: Scene) -> None:
    tasks = [scene.wait() for _ in range(4)]
    assert [task.done() for task in tasks] == [False, False, False, True]
    refusal = tasks[3].exception()
    assert isinstance(refusal, Overloaded)
    assert refusal.status == 503
    assert refusal.headers == {"retry-after": "1", "retry-after-ms": "1000"}
    assert len(scene.queue) == 3


def test_where_nobody_may_wait_all_are_refused_at_once(loop: SteppedLoop) -> None:
    scene = Scene(loop, length=0)
    assert not scene.queue.has_room
    assert is_refused(scene.wait())
    assert not scene.queue.hand("a")


def test_who_has_left_the_queue_makes_room_in_it(scene: Scene) -> None:
    first, *_ = [scene.wait() for _ in range(3)]
    first.cancel()
    scene.loop.settle()
    assert len(scene.queue) == 2
    assert not scene.wait().done()
    assert is_refused(scene.wait())


def ended(task: Waiting) -> type[BaseException] | type[None]:
    """What a wait in vain has ended with."""
    assert task.done()
    return type(task.exception())


@pytest.mark.parametrize(
    ("until", "waits", "end"),
    [
        (inf, WAIT, Overloaded),
        (9.0, WAIT, Overloaded),
        (WAIT, WAIT, Overloaded),
        (0.4, 0.4, TimeoutError),
        (0.0, 0.0, TimeoutError),
        (-1.0, 0.0, TimeoutError),
    ],
)
def test_nobody_waits_longer_than_one_may_nor_than_the_call_has_and_it_is_said_which(
    scene: Scene, until: float, waits: float, end: type[BaseException]
) -> None:
    task = scene.wait(scene.loop.now + until)
    if waits:
        scene.loop.now += waits - 0.001
        scene.loop.settle()
        assert not task.done()
        scene.loop.now += 0.001
        scene.loop.settle()
    assert ended(task) is end
    assert len(scene.queue) == 0
    assert not scene.queue.hand("a")


def test_each_waits_as_long_as_itself_may(scene: Scene) -> None:
    patient, hasty = scene.wait(), scene.wait(scene.loop.now + 0.1)
    scene.loop.now += 0.1
    scene.loop.settle()
    assert ended(hasty) is TimeoutError
    assert scene.queue.hand("a")
    scene.loop.settle()
    assert patient.result() == "a"


def test_who_was_given_a_place_is_not_refused_later(scene: Scene) -> None:
    task = scene.wait()
    scene.queue.hand("a")
    scene.loop.settle()
    scene.loop.now += 10
    scene.loop.settle()
    assert task.result() == "a"


# In the same moment.


@pytest.mark.parametrize("in_the_loop", [False, True])
def test_a_place_given_in_the_moment_in_which_the_time_is_up_is_kept(scene: Scene, in_the_loop: bool) -> None:
    task = scene.wait()
    scene.loop.now += WAIT
    if in_the_loop:
        scene.loop.call_soon(scene.queue.hand, "a")  # before the timer, and before the one who waits comes to it
    else:
        scene.queue.hand("a")
    scene.loop.settle()
    assert task.result() == "a"
    assert scene.returned == []


def test_who_is_refused_in_the_moment_in_which_he_leaves_has_left(scene: Scene) -> None:
    task = scene.wait()
    scene.loop.now += WAIT
    task.cancel()
    scene.loop.settle()
    assert task.cancelled()
    assert len(scene.queue) == 0


def test_who_leaves_in_the_moment_in_which_he_is_refused_has_left(scene: Scene) -> None:
    task = scene.wait()
    scene.loop.now += WAIT
    scene.loop.step()
    assert not task.done()
    task.cancel()
    scene.loop.settle()
    assert task.cancelled()
    assert scene.returned == []


def test_a_place_for_one_who_leaves_in_the_same_moment_goes_to_the_next(scene: Scene) -> None:
    leaving, staying = scene.wait(), scene.wait()
    scene.queue.hand("a")
    leaving.cancel()
    scene.loop.settle()
    assert leaving.cancelled()
    assert staying.result() == "a"
    assert scene.returned == []


def test_a_place_for_one_who_has_left_in_the_same_moment_goes_to_the_next(scene: Scene) -> None:
    leaving, staying = scene.wait(), scene.wait()
    leaving.cancel()
    assert scene.queue.hand("a")
    scene.loop.settle()
    assert leaving.cancelled()
    assert staying.result() == "a"
    assert scene.returned == []


def test_a_place_for_the_only_one_who_leaves_in_the_same_moment_is_given_back(scene: Scene) -> None:
    leaving = scene.wait()
    assert scene.queue.hand("a")
    leaving.cancel()
    scene.loop.settle()
    assert leaving.cancelled()
    assert scene.returned == ["a"]

    leaving = scene.wait()
    leaving.cancel()
    assert not scene.queue.hand("b")
    scene.loop.settle()
    assert leaving.cancelled()
    assert scene.returned == ["a"]


def test_when_all_leave_in_the_same_moment_every_place_is_given_back(scene: Scene) -> None:
    tasks = [scene.wait() for _ in range(3)]
    assert [scene.queue.hand(place) for place in "ab"] == [True, True]
    for task in tasks:
        task.cancel()
    scene.loop.settle()
    assert all(task.cancelled() for task in tasks)
    assert sorted(scene.returned) == ["a", "b"]
    assert len(scene.queue) == 0


def test_a_wait_that_is_cut_off_before_it_has_begun_leaves_nothing(scene: Scene) -> None:
    task = scene.loop.create_task(scene.queue.turn(inf))
    task.cancel()
    scene.loop.settle()
    assert task.cancelled()
    assert len(scene.queue) == 0


# An upstream's places.


def replica(loop: SteppedLoop, name: str) -> Replica:
    breaker = Breaker(BreakerSettings(), lambda: 0.5)
    return Replica(Endpoint(f"http://{name}:8000/v1", DIALECTS["openai"](), []), breaker, loop.time, 30.0)


def upstream(loop: SteppedLoop, *names: str, limit: int = 1, length: int = 3) -> Upstream:
    key = Breaker(BreakerSettings(), lambda: 0.5)
    concurrency = ConcurrencySettings(limit, length, WAIT)
    rules = Rules(Timeouts(), RetrySettings(), concurrency, LeastLoad(), key)
    transport = httpx.MockTransport(lambda _: httpx.Response(500))
    return Upstream("up", DIALECTS["openai"](), [replica(loop, name) for name in names], transport, rules)


def queued(loop: SteppedLoop, made: Upstream, *shunned: Replica) -> asyncio.Task[Replica]:
    task = loop.create_task(made.queue.turn(inf, lambda one: one not in shunned))
    loop.settle()
    return task


def test_the_place_of_a_call_that_ends_goes_to_whoever_waits_and_the_count_does_not_move(loop: SteppedLoop) -> None:
    made = upstream(loop, "a", "b")
    a, b = made.replicas
    a.inflight = b.inflight = 1
    task = queued(loop, made)
    made.release(b)
    assert (a.inflight, b.inflight) == (1, 1)
    assert len(made.queue) == 0
    loop.settle()
    assert task.result() is b
    made.release(b)
    made.release(a)
    assert (a.inflight, b.inflight) == (0, 0)


def test_the_place_of_one_who_leaves_in_the_same_moment_is_free_again(loop: SteppedLoop) -> None:
    made = upstream(loop, "a")
    (a,) = made.replicas
    a.inflight = 1
    task = queued(loop, made)
    made.release(a)
    task.cancel()
    loop.settle()
    assert a.inflight == 0


def test_a_place_that_nobody_wants_who_waits_is_free(loop: SteppedLoop) -> None:
    made = upstream(loop, "a", "b")
    a, b = made.replicas
    a.inflight = b.inflight = 1
    task = queued(loop, made, a)
    made.release(a)
    assert a.inflight == 0
    made.release(b)
    loop.settle()
    assert task.result() is b
    assert b.inflight == 1


def test_replicas_that_come_are_not_held_for_those_who_do_not_want_them(loop: SteppedLoop) -> None:
    made = upstream(loop, "a", limit=2)
    (a,) = made.replicas
    a.inflight = 2
    b = replica(loop, "b")
    picky, easy = queued(loop, made, b), queued(loop, made)
    made.replace([a, b])
    loop.settle()
    assert easy.result() is b
    assert not picky.done()
    assert b.inflight == 1


def test_nobody_is_sent_to_a_replica_that_has_gone(loop: SteppedLoop) -> None:
    made = upstream(loop, "a", "b")
    a, b = made.replicas
    a.inflight = b.inflight = 1
    task = queued(loop, made)
    made.replace([b])
    made.release(a)
    loop.settle()
    assert a.inflight == 0
    assert not task.done()
    made.release(b)
    loop.settle()
    assert task.result() is b


def test_who_waits_goes_to_replicas_that_come_as_many_as_they_take(loop: SteppedLoop) -> None:
    made = upstream(loop, "a", limit=2, length=9)
    (a,) = made.replicas
    a.inflight = 2
    tasks = [queued(loop, made) for _ in range(6)]
    b, c = replica(loop, "b"), replica(loop, "c")
    made.replace([a, b, c])
    assert [one.inflight for one in (a, b, c)] == [2, 2, 2]
    assert len(made.queue) == 2
    loop.settle()
    assert [task.done() for task in tasks] == [True] * 4 + [False] * 2
    assert [task.result() for task in tasks[:4]] == [b, b, c, c]


def test_replicas_that_come_while_those_who_waited_leave_have_all_their_places(loop: SteppedLoop) -> None:
    made = upstream(loop, "a", limit=2)
    (a,) = made.replicas
    a.inflight = 2
    tasks = [queued(loop, made) for _ in range(3)]
    b = replica(loop, "b")
    tasks[0].cancel()
    made.replace([b])
    for task in tasks:
        task.cancel()
    assert b.inflight == 2
    loop.settle()
    assert b.inflight == 0
    assert not made.queue


# Any history.

LIMIT, LENGTH = 2, 3


@dataclass
class Wait:
    """A call that waits: until when it will, and for whose places it does not."""

    task: asyncio.Task[Any]
    due: float
    shunned: Sequence[Replica]
    leaving: bool = False


class Places(RuleBasedStateMachine):
    """Calls that come, end, leave and lose patience, at replicas that come and go, many of them in the same moment."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = SteppedLoop()
        self.names = count()
        self.numbers = count()
        self.held: list[Replica] = []  # one for each call that has a place
        self.waiting: dict[int, Wait] = {}
        self.refused: list[tuple[float, float]] = []  # when, and when it was due
        self.known: list[Replica] = []

    @initialize(replicas=st.integers(1, 3))
    def begin(self, replicas: int) -> None:
        self.upstream = upstream(self.loop, *self._names(replicas), limit=LIMIT, length=LENGTH)
        self.known += self.upstream.replicas

    def _names(self, number: int) -> list[str]:
        return [f"replica-{next(self.names)}" for _ in range(number)]

    async def _call(self, number: int, patience: float, shuns: int) -> None:
        """As calls do it: a free place is taken at once, or else waited for, but not everyone's will do."""
        shunned = self.known[shuns : shuns + 1]
        free = [one for one in self.upstream.replicas if not self.upstream.is_full(one) and one not in shunned]
        place = next(iter(free), None)
        if place is not None:
            place.inflight += 1
            self.held.append(place)
            return
        task = asyncio.current_task()
        assert task is not None
        due = self.loop.now + min(patience, WAIT) if self.upstream.queue.has_room else self.loop.now
        self.waiting[number] = Wait(task, due, shunned)
        try:
            place = await self.upstream.queue.turn(self.loop.now + patience, lambda one: one not in shunned)
        except (Overloaded, TimeoutError):
            self.refused.append((self.loop.now, due))
        else:
            self._serve(number, place)
        finally:
            del self.waiting[number]

    def _serve(self, number: int, place: Replica) -> None:
        assert place not in self.waiting[number].shunned
        earlier = [wait for one, wait in self.waiting.items() if one < number and not wait.leaving]
        assert all(place in wait.shunned or wait.due <= self.loop.now for wait in earlier), "it was another's turn"
        self.held.append(place)

    @rule(patience=st.sampled_from([0.25, 0.75, inf]), shuns=st.integers(0, 9))
    def come(self, patience: float, shuns: int) -> None:
        self.loop.create_task(self._call(next(self.numbers), patience, shuns))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(self.held))
        self.held.remove(place)
        self.upstream.release(place)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        wait = self.waiting[data.draw(st.sampled_from(sorted(self.waiting)))]
        wait.leaving = wait.task.cancel()

    @rule(kept=st.integers(0, 3), new=st.integers(0, 2))
    def replace(self, kept: int, new: int) -> None:
        fresh = [replica(self.loop, name) for name in self._names(new)]
        replicas = [*self.upstream.replicas[:kept], *fresh]
        if replicas:
            self.known += fresh
            self.upstream.replace(replicas)

    @rule(seconds=st.sampled_from([0.125, 0.5, 1.0]))
    def pass_time(self, seconds: float) -> None:
        self.loop.now += seconds

    @rule()
    def step(self) -> None:
        self.loop.step()

    @rule()
    def settle(self) -> None:
        self.loop.settle()
        for one in self.known:
            assert one.inflight == self.held.count(one), "a place was lost, or given twice"
        for wait in self.waiting.values():
            welcome = [one for one in self.upstream.replicas if one not in wait.shunned]
            assert all(self.upstream.is_full(one) for one in welcome), "a place is free, and nobody's"
            assert wait.due > self.loop.now, "it has waited long enough"
        assert len(self.upstream.queue) == len(self.waiting)

    @invariant()
    def is_bounded(self) -> None:
        assert all(0 <= one.inflight <= LIMIT for one in self.known)
        assert all(now >= due for now, due in self.refused), "it was refused too early"
        if self.known:
            assert len(self.upstream.queue) <= LENGTH

    def teardown(self) -> None:
        try:
            if self.known:
                self._all_leave()
            assert self.loop.faults == []
        finally:
            self.loop.close()

    def _all_leave(self) -> None:
        self.loop.settle()
        for wait in self.waiting.values():
            wait.task.cancel()
        self.settle()
        while self.held:
            self.upstream.release(self.held.pop())
        assert all(one.inflight == 0 for one in self.known)


TestPlaces = Places.TestCase
TestPlaces.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)
