"""What the SDK's tests share: a real model and a scripted upstream behind one real gateway process, and the SDK itself.

Every test runs twice, with the SDK's synchronous client (in a thread, as the scripted upstream lives on the test's loop)
and with its asynchronous one.
"""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.sdk.stage import LLAMAS_KEY, SECRETS, Sdk, Stage, Standing, open_stage


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with open_stage(tmp_path_factory.mktemp("gateway")) as stage:
        yield stage
    written = "\n".join([*stage.gateway.out, *stage.gateway.err])
    assert [secret for secret in SECRETS if secret in written] == []


@pytest.fixture
def standing(stage: Stage) -> Standing:
    return stage.standing


# Not longer than the package: an open fixture holds on to its event loop, and others bring one of their own.
@pytest.fixture(scope="package", params=["sync", "async"])
async def sdk(request: pytest.FixtureRequest, stage: Stage) -> AsyncIterator[Sdk]:
    async with Sdk(stage.gateway.url + "/v1", asynchronous=request.param == "async") as sdk:
        yield sdk


@pytest.fixture(scope="package")
async def direct(stage: Stage, sdk: Sdk) -> AsyncIterator[Sdk]:
    """The same SDK, talking to the real model without the gateway."""
    async with sdk.sibling(f"{stage.llama.url}/v1", api_key=LLAMAS_KEY) as direct:
        yield direct
