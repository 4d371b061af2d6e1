"""What spans are called and what their attributes are called: OpenTelemetry's semantic conventions, in one place.

HTTP, server and error names are stable in them. Those of generative AI (`gen_ai.*`) are still under development, in a
repository of their own (open-telemetry/semantic-conventions-genai): when they change, they change here and in
docs/tracing.md. What the conventions have no name for is under `gateway.`.
"""

from collections.abc import Mapping

from gateway.call import Kind

SCOPE = "gateway"

# Resource.
SERVICE_NAME = "service.name"
SERVICE_VERSION = "service.version"

# HTTP and errors.
HTTP_REQUEST_METHOD = "http.request.method"
HTTP_RESEND_COUNT = "http.request.resend_count"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
URL_PATH = "url.path"
URL_SCHEME = "url.scheme"
ERROR_TYPE = "error.type"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"

# Generative AI.
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_STREAM = "gen_ai.request.stream"
TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"

# Ours.
REQUEST_ID = "gateway.request_id"
KEY_NAME = "gateway.key"
MODEL = "gateway.model"
UPSTREAM = "gateway.upstream"
REPLICA = "gateway.replica"
ATTEMPT = "gateway.attempt"
ATTEMPTS = "gateway.attempts"
OUTCOME = "gateway.outcome"
END_REASON = "gateway.end_reason"
GAVE_UP = "gateway.gave_up"
HEDGE = "gateway.hedge"
TIME_TO_FIRST_TOKEN = "gateway.time_to_first_token"  # noqa: S105 - likewise

OTHER = "_OTHER"
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"))
OPERATIONS: Mapping[Kind, str] = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings"}
