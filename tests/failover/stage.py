"""A gateway process, three replicas behind it, callers before it, and somebody who watches its metrics."""

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.failover.load import Load
from tests.failover.replica import Replica
from tests.failover.watch import Watch
from tests.support.processes import GatewayProcess

CONFIG = """\
server: {{host: 127.0.0.1, port: 0, admin_port: 0, drain_seconds: 1}}
auth: {{required: false}}
upstreams:
  up:
    kind: openai
    urls: [{urls}]
    balance: {balance}
    breaker: {{ejection: 1, max_ejection: 4, slow_start: 1, window: 5}}
    timeouts: {{connect: 0.5, first_token: 1, reply: 1, idle: 1}}
models: {{m: {{targets: [{{upstream: up}}]}}}}
"""
EJECTION, LONGEST_EJECTION, JITTER, FIRST_BYTE = 1.0, 4.0, 0.1, 1.0  # seconds, as above, but for the share of jitter
RATE = 200.0  # calls a second


@dataclass(frozen=True)
class Stage:
    """All that is running. `straight`: calls to one more replica with no gateway between, which meet the same machine."""

    gateway: GatewayProcess
    replicas: Sequence[Replica]
    load: Load
    straight: Load
    watch: Watch

    def ejections(self, replica: Replica) -> int:
        """How often the gateway says that it has ejected it."""
        lines = (json.loads(line) for line in self.gateway.out if '"replica_ejected"' in line)
        return sum(line["replica"] == replica.netloc for line in lines)


@contextlib.asynccontextmanager
async def staged(folder: Path, balance: str) -> AsyncIterator[Stage]:
    """Start everything, and end everything. `folder` gets the config."""
    async with contextlib.AsyncExitStack() as stack:
        *replicas, alone = (Replica(f"replica-{number}") for number in range(4))
        for replica in (*replicas, alone):
            stack.callback(replica.release)
            await stack.enter_async_context(replica)
        config = folder / "gateway.yaml"
        urls = ", ".join(f'"{replica.url}/v1"' for replica in replicas)
        config.write_text(CONFIG.format(urls=urls, balance=balance), encoding="utf-8")
        gateway = await asyncio.to_thread(GatewayProcess(config).__enter__)
        stack.push_async_callback(asyncio.to_thread, gateway.stop)
        gc.collect()
        gc.freeze()  # what pytest has loaded: looking through it again and again would be pauses
        stack.callback(gc.unfreeze)
        watch = await stack.enter_async_context(Watch(_port(gateway.admin_url)))
        straight = await stack.enter_async_context(Load(alone.port, rate=RATE / 4))
        load = await stack.enter_async_context(Load(_port(gateway.url), rate=RATE))
        yield Stage(gateway, replicas, load, straight, watch)


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])
