"""How long was waited before a request could go out: for a place at the upstream, for a connection, for one to be made.

Only those who wait pay for being watched. Must not know what is waited for.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.call import Clock, Exchange, Wait, Waited


@contextmanager
def waiting(what: Waited, upstream: str, exchange: Exchange, clock: Clock) -> Iterator[None]:
    """Note the time that it takes. To wait in vain is to wait; but a connection that is not made took none."""
    began_at = clock()
    made = False
    try:
        yield
        made = True
    finally:
        if made or what != "connect":
            exchange.waits += (Wait(what, upstream, clock() - began_at),)
