"""The way that a request would go, in words for people: from settings, and from readings where there are any.

Pure, and told from the config alone, so that it needs no server's imports; a test holds it to what the fleet makes of the
same config. Must not know keys, nor where the readings come from.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from urllib.parse import urlsplit

from gateway.config import Model, Settings, Target, Upstream, resolve
from gateway.explain.readings import Readings

_PORTS = {"http": 80, "https": 443, "grpc": None, "grpcs": None}
_ORDER = """\
A call begins at a target of 1, drawn by its share. What fails before its first event goes on at another replica of that
upstream, then at the other targets, then at the fallbacks in order; at the same replica only if nothing else is left.
What is out, cooling or unhealthy comes last, and is used rather than nothing."""


class UnknownModel(Exception):
    """No route takes this name; the message is one line that says which are like it."""


def explained(settings: Settings, model: str, readings: Readings | None = None) -> str:
    """The plan of a request for `model`, in lines. Raises UnknownModel."""
    route = resolve(model, settings.models)
    if route is None:
        raise UnknownModel(f"--model: no model or pattern takes this name; {_nearest(model, settings.models)}")
    stages = [
        (model, route),
        *((name, resolve(name, settings.models) or "") for name in settings.models[route].fallbacks),
    ]
    on_the_way = _on_the_way(settings, [stage for _, stage in stages])
    lines = [f"{model}: {_found(model, route)}"]
    if readings is not None and (missing := [name for name in on_the_way if name not in readings.upstreams]):
        lines.append(f"The gateway at --url runs another config: it has no upstream {', '.join(missing)}.")
    for number, (name, stage) in enumerate(stages, 1):
        title = (
            "targets, each with its share of the calls" if number == 1 else f"fallback {name}, {_found(name, stage)}"
        )
        lines += ["", f"{number}. {title}"]
        lines += _stage(settings, settings.models[stage], name, readings)
    lines += ["", _ORDER, "", "Rules:"]
    lines += _rules(on_the_way)
    lines += [f"   {'hedge':11}  {_hedge(settings.models[route])}"]
    return "\n".join(lines)


def _nearest(model: str, names: Mapping[str, Model]) -> str:
    plain = {name.casefold(): name for name in names}
    near = get_close_matches(model.casefold(), plain, n=3, cutoff=0.5)
    told = [plain[name] for name in near] or sorted(names)[:5]
    return f"{'nearest' if near else 'configured'}: {', '.join(told)}"


def _found(model: str, route: str) -> str:
    return "configured by this name" if route == model else f"taken by the pattern {route}"


def _on_the_way(settings: Settings, routes: Iterable[str]) -> dict[str, Upstream]:
    """The upstreams that a call may come to, by name, in their order."""
    targets = [target for route in routes for target in settings.models[route].targets if target.weight]
    return {target.upstream: settings.upstreams[target.upstream] for target in targets}


def _stage(settings: Settings, model: Model, name: str, readings: Readings | None) -> Iterator[str]:
    total = sum(target.weight for target in model.targets)
    for target in model.targets:
        upstream = settings.upstreams[target.upstream]
        yield f"   {_share(target, total):>6}  {target.upstream} as {target.model or name} ({_manner(upstream)})"
        if target.weight:
            yield from (f"{'':11} {line}" for line in _upstream(target.upstream, upstream, readings))


def _share(target: Target, total: float) -> str:
    return f"{100 * target.weight / total:.3g} %" if target.weight else "never"


def _manner(upstream: Upstream) -> str:
    return f"kind {upstream.kind}, balance {upstream.balance}"


def _upstream(name: str, upstream: Upstream, readings: Readings | None) -> Iterator[str]:
    replicas = _replicas(name, upstream, readings)
    width = max((len(replica) for replica, _ in replicas), default=0)
    for replica, weight in replicas:
        weighed = "" if upstream.balance == "round_robin" else f"weight {weight:g}"
        standing = "" if readings is None else _standing(readings, (name, replica))
        yield "  ".join(part for part in (f"{replica:{width}}", weighed, standing) if part).rstrip()
    if not replicas:
        found = "every address of" if readings is None else "no address is known there of"
        yield f"{found} {replica_name(upstream.replicas[0][0])}"
    if readings is not None:
        yield from _together(name, readings)


def _replicas(name: str, upstream: Upstream, readings: Readings | None) -> list[tuple[str, float]]:
    """Names and weights. Those that DNS tells of are known to the readings only."""
    if upstream.discovery == "none":
        return [(replica_name(url), weight) for url, weight in upstream.replicas]
    found = () if readings is None else readings.states
    return [(replica, 1.0) for owner, replica in sorted(found) if owner == name]


def replica_name(url: str) -> str:
    """The name of a replica in metrics and log: its host, and its port if that is not the scheme's."""
    parts = urlsplit(url)
    address, bracket, _ = parts.netloc.partition("]")
    host = f"{address}]" if bracket else parts.hostname or ""
    return host if parts.port in {None, _PORTS[parts.scheme]} else f"{host}:{parts.port}"


def _standing(readings: Readings, place: tuple[str, str]) -> str:
    if place not in readings.states:
        return "not known there"
    told = f"{readings.states[place]}, {_counted(readings.inflight.get(place, 0.0), 'call')} in flight"
    if place not in readings.running:
        return told
    return f"{told}; the engine has {readings.running[place]:g} running, {readings.waiting.get(place, 0.0):g} waiting"


def _counted(number: float, thing: str) -> str:
    return f"{number:g} {thing}{'' if number == 1 else 's'}"


def _together(name: str, readings: Readings) -> Iterator[str]:
    """What holds for the replicas of one upstream alike."""
    if name in readings.panicking:
        yield "panic: over half of the replicas are out, and so all are used"
    if name in readings.key_refused:
        yield "key refused: calls come here only if nothing else is left"
    if name in readings.budget:
        yield f"retry budget: {_counted(readings.budget[name], 'attempt')} left"


def _rules(upstreams: Mapping[str, Upstream]) -> Iterator[str]:
    """Each said once for all that have it alike."""
    for rule, said in _RULES.items():
        alike: dict[str, list[str]] = {}
        for name, upstream in upstreams.items():
            alike.setdefault(said(upstream), []).append(name)
        for index, (words, names) in enumerate(alike.items()):
            where = f"{', '.join(names)}: " if len(alike) > 1 else ""
            yield f"   {'' if index else rule:11}  {where}{words}"


def _attempts(upstream: Upstream) -> str:
    return f"{upstream.retry.attempts} at most for a call that begins here, fallbacks and hedges included"


def _backoff(upstream: Upstream) -> str:
    retry = upstream.retry
    asked = f"or a Retry-After up to {retry.longest_wait:g} s" if retry.longest_wait else "no Retry-After is waited for"
    return (
        f"elsewhere none; at the same replica drawn from 0 to {retry.base:g} s, doubled each time, "
        f"up to {retry.cap:g} s; {asked}"
    )


def _budget(upstream: Upstream) -> str:
    retry = upstream.retry
    return f"{retry.budget:g} further attempts for each call of the last 10 s, and {retry.reserve} in reserve"


def _timeouts(upstream: Upstream) -> str:
    timeouts = upstream.timeouts
    phases = f"connect {timeouts.connect:g} s, first token {timeouts.first_token:g} s, reply {timeouts.reply:g} s"
    return f"{phases}; all attempts together {timeouts.total:g} s"


def _breaker(upstream: Upstream) -> str:
    breaker = upstream.breaker
    share = f"{100 * breaker.served:g} % served of at least {breaker.volume} calls in {breaker.window:g} s"
    return (
        f"out after {_counted(breaker.failures, 'failure')} in a row{f', or under {share}' if breaker.served else ''}; "
        f"for {breaker.ejection:g} s, longer each time, up to {breaker.max_ejection:g} s"
    )


def _slow_start(upstream: Upstream) -> str:
    seconds = upstream.breaker.slow_start
    return f"a replica that came back gets its share {f'over {seconds:g} s' if seconds else 'at once'}"


def _concurrency(upstream: Upstream) -> str:
    most = upstream.concurrency
    waiting = f"{most.queue} more wait, up to {most.wait:g} s" if most.queue else "none wait for a place"
    return f"{most.limit} calls at once at each replica; {waiting}"


_RULES: dict[str, Callable[[Upstream], str]] = {
    "attempts": _attempts,
    "backoff": _backoff,
    "budget": _budget,
    "timeouts": _timeouts,
    "breaker": _breaker,
    "slow start": _slow_start,
    "concurrency": _concurrency,
}


def _hedge(model: Model) -> str:
    if model.hedge is None:
        return "none"
    after = model.hedge.after
    when = "the p95 of this model's latest calls" if after == "p95" else f"{after:g} s"
    return f"a second attempt starts elsewhere after {when} without a first event"
