"""The admin port: what ops and the platform need, which callers never reach.

FastAPI serves it, because here ease counts and microseconds do not. Must not be mounted on the API port.
"""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route

from gateway.api.ops import Health
from gateway.errors import CallerError, GatewayError, MethodNotAllowed, NotFound


def create_admin(page: Callable[[], Awaitable[bytes]], health: Health) -> FastAPI:
    """`/metrics`, which is `page`, `/healthz` and `/readyz`; errors have OpenAI's shape here too."""
    app = FastAPI(title="gateway", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await page(), media_type=CONTENT_TYPE_LATEST)

    for path in health.paths:
        app.router.routes.append(Route(path, health))

    @app.exception_handler(HTTPException)
    def refuse(_request: Request, failure: HTTPException) -> Response:
        error = _ERRORS.get(failure.status_code, _refused)(failure)
        headers = {**(failure.headers or {}), **error.headers}
        return Response(error.body(), error.status, headers, media_type="application/json")

    return app


def _refused(failure: HTTPException) -> GatewayError:
    error = CallerError("The request was refused.")
    error.status = failure.status_code
    return error


_ERRORS: dict[int, Callable[[HTTPException], GatewayError]] = {
    404: lambda _: NotFound("There is nothing at this path."),
    405: lambda _: MethodNotAllowed("This path does not take this method."),
}
