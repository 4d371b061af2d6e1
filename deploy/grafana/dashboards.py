"""What the four dashboards show. `make dashboards` writes their JSON from this.

To add a panel, write one below, in the row where people will look for it. Its description is one line: what it shows, then
what to do when it looks wrong. `make test-ops` runs every query against a gateway in trouble, and fails if one finds nothing.
"""

from deploy.grafana.panels import Dashboard, Panel, Row, Variable

# What the variables at the top leave in. A chosen "All" takes series that lack the label too.
ALL = 'namespace=~"$namespace"'
MODEL = f'{ALL}, model=~"$model"'
UPSTREAM = f'{ALL}, upstream=~"$upstream"'
BOTH = f'{ALL}, model=~"$model", upstream=~"$upstream"'
TRIED = f'{UPSTREAM}, upstream!=""'
FAILED = 'outcome!~"served|rejected|abandoned"'  # what callers can blame somebody else for
CUT = 'reason!~"done|caller_left|deadline_exceeded"'
OURS = "and on (namespace, job, instance) gateway_build_info"  # every exporter tells of its process

VARIABLES = (
    Variable("namespace", "Namespace", values="label_values(gateway_build_info, namespace)"),
    Variable("model", "Model", values=f"label_values(gateway_requests_total{{{ALL}}}, model)"),
    Variable("upstream", "Upstream", values=f"label_values(gateway_upstream_state{{{ALL}}}, upstream)"),
)


def rate(family: str, where: str, by: str = "") -> str:
    """How often a second, or how much."""
    return f"sum{_by(by)} (rate({family}{{{where}}}[$__rate_interval]))"


def share(family: str, part: str, where: str, by: str = "") -> str:
    """Of what `where` leaves in, the share that `part` does too; 0 where there is none of it, and a gap where there is nothing."""
    whole = rate(family, where, by)
    return f"({rate(family, f'{where}, {part}', by)} or 0 * {whole}) / {whole}"


def quantile(rank: float, family: str, where: str, by: str = "") -> str:
    """The value that `rank` of the samples do not pass."""
    return f"histogram_quantile({rank}, {rate(f'{family}_bucket', where, f'le, {by}' if by else 'le')})"


def quantiles(family: str, where: str) -> dict[str, str]:
    """Half of them, nearly all, and the worst."""
    return {
        "p50": quantile(0.5, family, where),
        "p95": quantile(0.95, family, where),
        "p99": quantile(0.99, family, where),
    }


def mean(family: str, where: str, by: str) -> str:
    """Of a histogram's samples."""
    return f"{rate(f'{family}_sum', where, by)} / {rate(f'{family}_count', where, by)}"


def tokens(type_: str, by: str = "") -> str:
    """Tokens of a type a second; cached ones are input too, and those of reasoning are output."""
    return rate("gateway_tokens_total", f'{BOTH}, type="{type_}"', by)


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


OVERVIEW = Dashboard(
    name="overview",
    title="Overview",
    about="Whether callers are served, how fast, and how much room is left. Begin here.",
    variables=VARIABLES,
    rows=(
        Row(
            "Now",
            (
                Panel(
                    "Requests",
                    "reqps",
                    "Requests a second on API routes; if it falls to nothing, ask whoever routes to the gateway, then the callers.",
                    {"requests": rate("gateway_requests_total", BOTH)},
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Failures",
                    "percentunit",
                    "Share of requests that failed and not by their caller's fault; if it is over 0.5 %, look at Failures by model below.",
                    {"failures": share("gateway_requests_total", FAILED, BOTH)},
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Error budget left",
                    "percentunit",
                    "The worst model's budget of the last 30 days; if it nears 0, put safety before changes (-100 % stands for all below). Empty: load the recording rules.",
                    {
                        "left": f"clamp_min(min(1 - gateway:request_failures:ratio_rate30d{{{MODEL}}} / on () group_left () gateway:slo_error_budget:ratio), -1)"
                    },
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "First token, p95",
                    "s",
                    "How long 95 % of streams' callers wait at most for the first word; if it is over 10 s, look at Upstreams for the one that is slow.",
                    {"p95": quantile(0.95, "gateway_time_to_first_token_seconds", BOTH)},
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Upstreams out",
                    "none",
                    "Upstreams with over half of their replicas or their key out; if it is not 0, look at Upstreams and the alerts.",
                    {
                        "out": f"count(max by (upstream) (gateway_upstream_panic{{{UPSTREAM}}}) + max by (upstream) (gateway_upstream_key_refused{{{UPSTREAM}}}) > 0) or vector(0)"
                    },
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Gateways",
                    "none",
                    "Processes that Prometheus reaches, by version; if some are missing, look at their pods and their last log lines.",
                    {"{{version}}": f"sum by (version) (gateway_build_info{{{ALL}}})"},
                    kind="stat",
                    width=4,
                ),
            ),
        ),
        Row(
            "Traffic and errors",
            (
                Panel(
                    "Requests by outcome",
                    "reqps",
                    "What came of requests; if anything but served grows, its colour says whose fault it is (docs/metrics-and-log.md has each).",
                    {"{{outcome}}": rate("gateway_requests_total", BOTH, "outcome")},
                    stacked=True,
                ),
                Panel(
                    "Failures by model",
                    "percentunit",
                    "Share of each model's requests that failed and not by their caller's fault; if one stands out, choose it above and see its upstreams.",
                    {"{{model}}": share("gateway_requests_total", FAILED, BOTH, "model")},
                ),
                Panel(
                    "Answers by status",
                    "reqps",
                    "Statuses that are no 200; 4xx are mostly the callers' (look for the key in the log), 502 to 504 an upstream's, 503 too little room.",
                    {"{{status}}": rate("gateway_requests_total", f'{BOTH}, status!="200"', "status")},
                ),
                Panel(
                    "Plain answers take",
                    "s",
                    "From the request's head to the answer's end, without streams; if p50 rises with p99, look at the upstreams, else at one replica.",
                    quantiles("gateway_request_duration_seconds", f'{BOTH}, stream="false"'),
                ),
                Panel(
                    "First token takes",
                    "s",
                    "From the request's head to a stream's first content; if it rises, compare Prefill and Queue wait under Upstreams.",
                    quantiles("gateway_time_to_first_token_seconds", BOTH),
                ),
                Panel(
                    "The gateway adds",
                    "s",
                    "The gateway's own time, queues included; if p95 passes 25 ms, look at Waiting for a place, then at Event loop lag and CPU, and run more replicas.",
                    quantiles("gateway_overhead_seconds", ALL),
                ),
            ),
        ),
        Row(
            "Service level",
            (
                Panel(
                    "Error budget burn",
                    "suffix:x",
                    "How many times faster than allowed the worst model spends its budget; over 14.4 pages. Empty: load the recording rules.",
                    {
                        window: f"max(gateway:request_failures:ratio_rate{window}{{{MODEL}}} / on () group_left () gateway:slo_error_budget:ratio)"
                        for window in ("5m", "1h", "6h", "3d")
                    },
                ),
                Panel(
                    "Availability over 30 days",
                    "percentunit",
                    "Share of each model's requests that did not fail; if it is under 99.5 %, its error budget is spent. Empty: load the recording rules.",
                    {"{{model}}": f"1 - gateway:request_failures:ratio_rate30d{{{MODEL}}}"},
                    top=1.0,
                ),
                Panel(
                    "Alerts",
                    "none",
                    "Alerts that fire now; each has a section of its own in docs/runbooks.md.",
                    {
                        "{{alertname}}": f'sum by (alertname, severity) (ALERTS{{{ALL}, alertname=~"Gateway.+", alertstate="firing"}})'
                    },
                ),
            ),
        ),
        Row(
            "Saturation",
            (
                Panel(
                    "Being served",
                    "none",
                    "Requests in each gateway now; if it climbs while requests do not, something is slower: look at the first token and Upstreams.",
                    {"{{instance}}": f"gateway_inflight_requests{{{ALL}}}"},
                ),
                Panel(
                    "Waiting for a place",
                    "none",
                    "Calls that wait because an upstream has as many as it may; if it stays over 0, add replicas or raise concurrency.limit.",
                    {"{{upstream}}": f"sum by (upstream) (gateway_upstream_queued{{{UPSTREAM}}})"},
                ),
                Panel(
                    "Refused as overloaded",
                    "reqps",
                    "Calls that found queue and places full; if it is not 0, callers see 503: add replicas, or raise concurrency.limit.",
                    {"{{upstream}}": rate("gateway_sheds_total", UPSTREAM, "upstream")},
                ),
                Panel(
                    "Event loop lag, p99",
                    "s",
                    "How late the process is for its own timer; if it passes 0.1 s, every stream stutters: run more replicas.",
                    {"{{instance}}": quantile(0.99, "gateway_event_loop_lag_seconds", ALL, "instance")},
                ),
                Panel(
                    "CPU",
                    "percentunit",
                    "Share of a core; one process uses one core at most, so if it nears 100 %, run more replicas.",
                    {
                        "{{instance}}": f"rate(process_cpu_seconds_total{{{ALL}}}[$__rate_interval]) {OURS}",
                    },
                ),
                Panel(
                    "Memory",
                    "bytes",
                    "What each process holds; if it grows while Being served does not, restart it and report it.",
                    {"{{instance}}": f"process_resident_memory_bytes{{{ALL}}} {OURS}"},
                ),
                Panel(
                    "File descriptors",
                    "percentunit",
                    "Share of the descriptors that each process may have; if it nears 100 %, connections are reset: raise the limit (65,536 is good).",
                    {"{{instance}}": f"process_open_fds{{{ALL}}} / process_max_fds {OURS}"},
                    top=1.0,
                ),
                Panel(
                    "Log lines dropped",
                    "none",
                    "Lines that nobody read, since each process started; if it rises, whatever reads the gateway's stdout is too slow or gone.",
                    {"{{instance}}": f"gateway_log_lines_dropped{{{ALL}}}"},
                ),
                Panel(
                    "Unreadable requests",
                    "reqps",
                    "Requests refused before their head was read, in no other panel; if it is more than a scanner now and then, a caller is broken.",
                    {"{{status}}": rate("gateway_refused_heads_total", ALL, "status")},
                ),
            ),
        ),
    ),
)

UPSTREAMS = Dashboard(
    name="upstreams",
    title="Upstreams",
    about="Each upstream and each of its replicas: whether it is in use, how it fails, which phase is slow, and what its engine says.",
    variables=VARIABLES,
    rows=(
        Row(
            "State",
            (
                Panel(
                    "In use",
                    "percentunit",
                    "Share of gateways to which a replica is as it should be; if it is under 100 %, the panel beside says what it is instead.",
                    {
                        "{{upstream}} {{replica}}": f'avg by (upstream, replica) (gateway_upstream_state{{{UPSTREAM}, state="available"}})'
                    },
                    top=1.0,
                ),
                Panel(
                    "Not as it should be",
                    "none",
                    "Gateways by what a replica is to them; cooling: it throttles, ask for more; ejected, probing, unhealthy: look at the replica.",
                    {
                        "{{upstream}} {{replica}} {{state}}": f'sum by (upstream, replica, state) (gateway_upstream_state{{{UPSTREAM}, state!="available"}}) > 0'
                    },
                    kind="table",
                ),
                Panel(
                    "Out as a whole",
                    "none",
                    "1 while most replicas are out, the key is refused or the account is dry; if it is 1, follow that alert's runbook.",
                    {
                        "{{upstream}} replicas": f"max by (upstream) (gateway_upstream_panic{{{UPSTREAM}}})",
                        "{{upstream}} key": f"max by (upstream) (gateway_upstream_key_refused{{{UPSTREAM}}})",
                        "{{upstream}} quota": f"max by (upstream) (gateway_upstream_out_of_quota{{{UPSTREAM}}})",
                    },
                    top=1.0,
                ),
            ),
        ),
        Row(
            "Attempts",
            (
                Panel(
                    "Attempts by outcome",
                    "reqps",
                    "Tries at upstreams; if those that are not served grow, see which replica beside, and why below.",
                    {
                        "{{upstream}} {{outcome}}": rate(
                            "gateway_upstream_attempts_total", UPSTREAM, "upstream, outcome"
                        )
                    },
                    stacked=True,
                ),
                Panel(
                    "Failing attempts by replica",
                    "percentunit",
                    "Share of each replica's attempts that failed or timed out; if one stands out, restart or remove it, if all do, it is the upstream.",
                    {
                        "{{upstream}} {{replica}}": share(
                            "gateway_upstream_attempts_total",
                            'outcome=~"failed|timed_out"',
                            UPSTREAM,
                            "upstream, replica",
                        )
                    },
                ),
                Panel(
                    "Attempts for each request",
                    "suffix:x",
                    "What retries and hedges add to the load; if it stays over 1.2, an upstream fails so much that its retries make it worse.",
                    {
                        "all": f"{rate('gateway_upstream_attempts_total', UPSTREAM)} / {rate('gateway_requests_total', TRIED)}"
                    },
                ),
                Panel(
                    "Retries by reason",
                    "reqps",
                    "What was tried again, by what had failed; the reason (docs/errors.md has each) says where to look.",
                    {"{{upstream}} {{reason}}": rate("gateway_retries_total", UPSTREAM, "upstream, reason")},
                ),
                Panel(
                    "Not tried again",
                    "reqps",
                    "Failures that callers saw, by what forbade another attempt; budget is an outage, nowhere asks for a second target or a fallback.",
                    {"{{upstream}} {{reason}}": rate("gateway_retries_refused_total", UPSTREAM, "upstream, reason")},
                ),
                Panel(
                    "Retry budget",
                    "none",
                    "Further attempts that an upstream would pay for; if it is 0, too much fails there: mend the upstream, not the budget.",
                    {"{{upstream}}": f"min by (upstream) (gateway_upstream_retry_budget{{{UPSTREAM}}})"},
                ),
            ),
        ),
        Row(
            "Time, by phase (p95)",
            (
                Panel(
                    "Queue wait",
                    "s",
                    "Of attempts that had to wait for a place; if it nears concurrency.wait, callers are about to be refused: add replicas.",
                    {"{{upstream}}": quantile(0.95, "gateway_queue_wait_seconds", UPSTREAM, "upstream")},
                ),
                Panel(
                    "Pool wait",
                    "s",
                    "Of attempts that found all connections busy; if there are any, raise transport.max_connections or lower concurrency.limit.",
                    {"{{upstream}}": quantile(0.95, "gateway_pool_wait_seconds", UPSTREAM, "upstream")},
                ),
                Panel(
                    "Connecting",
                    "s",
                    "Name, TCP and TLS of new connections; if it passes a round trip or three, look at DNS and the network.",
                    {"{{upstream}}": quantile(0.95, "gateway_connect_seconds", UPSTREAM, "upstream")},
                ),
                Panel(
                    "Prefill",
                    "s",
                    "From sending a stream's request to its first content; if it rises with the engine's queue, add replicas, if alone, see prompt sizes.",
                    {"{{upstream}}": quantile(0.95, "gateway_prefill_seconds", BOTH, "upstream")},
                ),
                Panel(
                    "Decode, per token",
                    "s",
                    "Between output tokens; if it rises while prefill does not, the engine's batch is too large or its KV cache is full.",
                    {"{{upstream}}": quantile(0.95, "gateway_time_per_output_token_seconds", BOTH, "upstream")},
                ),
                Panel(
                    "First byte, by replica",
                    "s",
                    "What balancing goes by, of late; if one replica is slower than its equals, look at that machine.",
                    {
                        "{{upstream}} {{replica}}": f"max by (upstream, replica) (gateway_upstream_latency_seconds{{{UPSTREAM}}})"
                    },
                ),
            ),
        ),
        Row(
            "Load",
            (
                Panel(
                    "In flight",
                    "none",
                    "Calls of these gateways at each replica; if one has far more than its equals, it is slow: see its first byte.",
                    {
                        "{{upstream}} {{replica}}": f"sum by (upstream, replica) (gateway_upstream_inflight{{{UPSTREAM}}})"
                    },
                ),
                Panel(
                    "Waiting and refused",
                    "none",
                    "Calls that wait for a place, and those refused a second; if either stays over 0, there is too little room.",
                    {
                        "{{upstream}} waiting": f"sum by (upstream) (gateway_upstream_queued{{{UPSTREAM}}})",
                        "{{upstream}} refused": rate("gateway_sheds_total", UPSTREAM, "upstream"),
                    },
                ),
                Panel(
                    "Hedges",
                    "reqps",
                    "Second attempts beside slow first ones, by which was served; if first leads by far, hedge.after is too short.",
                    {"{{model}} {{served}}": rate("gateway_hedges_total", MODEL, "model, served")},
                ),
                Panel(
                    "Engine: running",
                    "none",
                    "Requests that an engine works on, whoever sent them; if far more than In flight, somebody else uses it too.",
                    {
                        "{{upstream}} {{replica}}": f"max by (upstream, replica) (gateway_upstream_engine_running{{{UPSTREAM}}})"
                    },
                    width=6,
                ),
                Panel(
                    "Engine: queue",
                    "none",
                    "Requests that wait inside an engine; if it stays over 0, callers wait for first tokens: add replicas.",
                    {
                        "{{upstream}} {{replica}}": f"max by (upstream, replica) (gateway_upstream_engine_waiting{{{UPSTREAM}}})"
                    },
                    width=6,
                ),
                Panel(
                    "Engine: KV cache",
                    "percentunit",
                    "Share of an engine's KV cache in use; if it nears 100 %, requests wait or are put back: add replicas or shorten contexts.",
                    {
                        "{{upstream}} {{replica}}": f"max by (upstream, replica) (gateway_upstream_engine_kv_usage{{{UPSTREAM}}})"
                    },
                    width=6,
                    top=1.0,
                ),
                Panel(
                    "Engine: batch size",
                    "none",
                    "Requests that Triton runs at once; if it stays near 1 under load, its dynamic batching is off.",
                    {
                        "{{upstream}} {{replica}}": f"max by (upstream, replica) (gateway_upstream_engine_batch_size{{{UPSTREAM}}})"
                    },
                    width=6,
                ),
            ),
        ),
    ),
)

COST = f"{tokens('input', 'model')} * $input_price + {tokens('output', 'model')} * $output_price"

MODELS = Dashboard(
    name="models",
    title="Models and tokens",
    about="Who is asked how much, in tokens; what it costs; and whether it is the prompt or the answer that takes the time.",
    variables=(
        *VARIABLES,
        Variable("input_price", "Input, USD per million", number="0.15"),
        Variable("output_price", "Output, USD per million", number="0.60"),
    ),
    rows=(
        Row(
            "Tokens",
            (
                Panel(
                    "Input tokens",
                    "suffix: tokens/s",
                    "Tokens of prompts a second, by model; if it jumps while requests do not, a caller has begun to send long prompts.",
                    {"{{model}}": tokens("input", "model")},
                    stacked=True,
                ),
                Panel(
                    "Output tokens",
                    "suffix: tokens/s",
                    "Tokens of answers a second, by model; this is what engines are for: if it falls under load, they are past their best.",
                    {"{{model}}": tokens("output", "model")},
                    stacked=True,
                ),
                Panel(
                    "Cost",
                    "currencyUSD",
                    "USD an hour, at the two prices above for every model shown (so choose one); if it is a surprise, see which model grew.",
                    {"{{model}}": f"({COST}) * 3600 / 1e6"},
                ),
                Panel(
                    "Cached input",
                    "percentunit",
                    "Share of prompts that came from a cache; if it falls, prompts no longer begin alike, or replicas share too little of them.",
                    {"{{model}}": f"{tokens('cached', 'model')} / {tokens('input', 'model')}"},
                    width=6,
                    top=1.0,
                ),
                Panel(
                    "Reasoning",
                    "percentunit",
                    "Share of answers that was thought and not said; if it is more than it is worth, ask callers for less effort.",
                    {"{{model}}": f"{tokens('reasoning', 'model')} / {tokens('output', 'model')}"},
                    width=6,
                    top=1.0,
                ),
                Panel(
                    "Estimated",
                    "percentunit",
                    "Share of tokens that no upstream reported; if it is not near 0, tokens and cost here are guesses for that upstream.",
                    {
                        "{{upstream}}": share(
                            "gateway_tokens_total",
                            'source="estimated"',
                            f'{BOTH}, type=~"input|output"',
                            "upstream",
                        )
                    },
                    width=6,
                ),
                Panel(
                    "Mean tokens",
                    "none",
                    "Of a prompt and of an answer, by model; if they grow, so do prefill and decode, and the KV cache that a call needs.",
                    {
                        "{{model}} prompt": mean("gateway_prompt_tokens", BOTH, "model"),
                        "{{model}} answer": mean("gateway_completion_tokens", BOTH, "model"),
                    },
                    width=6,
                ),
            ),
        ),
        Row(
            "Load",
            (
                Panel(
                    "Requests",
                    "reqps",
                    "Requests a second, by model; unknown is a name that no config has: see who sends it in the log.",
                    {"{{model}}": rate("gateway_requests_total", BOTH, "model")},
                    stacked=True,
                ),
                Panel(
                    "Concurrency",
                    "none",
                    "Calls at once, on the mean of the interval, of those that ended in it; if it nears concurrency.limit x replicas, add replicas.",
                    {"{{model}}": rate("gateway_request_duration_seconds_sum", BOTH, "model")},
                    stacked=True,
                ),
                Panel(
                    "Failures",
                    "percentunit",
                    "Share that failed and not by the caller's fault; if it is over 0.5 %, look at Upstreams for those behind the model.",
                    {"{{model}}": share("gateway_requests_total", FAILED, BOTH, "model")},
                ),
            ),
        ),
        Row(
            "Prefill and decode",
            (
                Panel(
                    "Prefill, p95",
                    "s",
                    "From sending a stream's request to its first content, by model; if it rises with prompt sizes, that is why, else it is the queue.",
                    {"{{model}}": quantile(0.95, "gateway_prefill_seconds", BOTH, "model")},
                ),
                Panel(
                    "Decode per token, p95",
                    "s",
                    "Between output tokens, by model; over 0.1 s is slower than people read: fewer calls at once, or more replicas.",
                    {"{{model}}": quantile(0.95, "gateway_time_per_output_token_seconds", BOTH, "model")},
                ),
                Panel(
                    "Output speed",
                    "suffix: tokens/s",
                    "Tokens a second that one stream gets, by the median time per token; if it is under 10, readers wait for words.",
                    {"{{model}}": f"1 / {quantile(0.5, 'gateway_time_per_output_token_seconds', BOTH, 'model')}"},
                ),
            ),
        ),
        Row(
            "Distributions",
            (
                Panel(
                    "Prompt sizes",
                    "none",
                    "Tokens of prompts; if a band appears far above the rest, find its caller in the log by input_tokens.",
                    {"all": rate("gateway_prompt_tokens_bucket", BOTH, "le")},
                    kind="heatmap",
                    width=6,
                ),
                Panel(
                    "Answer sizes",
                    "none",
                    "Tokens of answers; if all are as long as a limit, callers' max_tokens cuts them.",
                    {"all": rate("gateway_completion_tokens_bucket", BOTH, "le")},
                    kind="heatmap",
                    width=6,
                ),
                Panel(
                    "Prefill times",
                    "s",
                    "How long first contents took upstreams; two bands are two sorts of prompts, or a replica that is slow.",
                    {"all": rate("gateway_prefill_seconds_bucket", BOTH, "le")},
                    kind="heatmap",
                    width=6,
                ),
                Panel(
                    "Decode times",
                    "s",
                    "Times per output token; if the band widens upwards under load, the engine takes more calls at once than it can.",
                    {"all": rate("gateway_time_per_output_token_seconds_bucket", BOTH, "le")},
                    kind="heatmap",
                    width=6,
                ),
            ),
        ),
    ),
)

STREAMS = Dashboard(
    name="streams",
    title="Streams",
    about="What people see who read along: how long until the first word, whether it stutters, and how it ends.",
    variables=VARIABLES,
    rows=(
        Row(
            "First token",
            (
                Panel(
                    "First token by model, p95",
                    "s",
                    "What callers wait, all attempts included; if it is over 10 s, see whether the next panel or the one after it explains it.",
                    {"{{model}}": quantile(0.95, "gateway_time_to_first_token_seconds", BOTH, "model")},
                ),
                Panel(
                    "Of that, the upstream's",
                    "s",
                    "Prefill: what the attempt that was served took; if it is nearly all of the wait, look at that upstream's engines.",
                    {"{{upstream}}": quantile(0.95, "gateway_prefill_seconds", BOTH, "upstream")},
                ),
                Panel(
                    "First token, all",
                    "s",
                    "How the waits are spread; if a second band appears, some calls queue, or are tried twice.",
                    {"all": rate("gateway_time_to_first_token_seconds_bucket", BOTH, "le")},
                    kind="heatmap",
                ),
            ),
        ),
        Row(
            "While they run",
            (
                Panel(
                    "Longest gap",
                    "s",
                    "The longest silence within each stream; if p95 passes 2 s, people think it hangs: look at the engine's queue and KV cache.",
                    quantiles("gateway_stream_gap_seconds", BOTH),
                ),
                Panel(
                    "Time per token",
                    "s",
                    "Between output tokens; if it rises for all upstreams at once, look at the gateway's Event loop lag, else at the engine.",
                    quantiles("gateway_time_per_output_token_seconds", BOTH),
                ),
                Panel(
                    "Whole streams take",
                    "s",
                    "From head to end; long is not wrong, it says how much is said, and how long a drain may take.",
                    quantiles("gateway_request_duration_seconds", f'{BOTH}, stream="true"'),
                ),
            ),
        ),
        Row(
            "How they end",
            (
                Panel(
                    "Ends by reason",
                    "reqps",
                    "How streams ended that had begun; done and caller_left are well, any other reason (docs/errors.md) is a stream that was cut.",
                    {"{{reason}}": rate("gateway_stream_ends_total", BOTH, "reason")},
                    stacked=True,
                ),
                Panel(
                    "Cut, by upstream",
                    "percentunit",
                    "Share of streams that broke after they had begun, which nobody could mend; if it is over 2 %, look at that upstream's logs.",
                    {"{{upstream}}": share("gateway_stream_ends_total", CUT, BOTH, "upstream")},
                ),
                Panel(
                    "Callers who left",
                    "reqps",
                    "By what went on then; if streaming leads, they had enough, if upstream, queue or backoff does, they waited too long.",
                    {"{{phase}}": rate("gateway_client_disconnects_total", ALL, "phase")},
                ),
            ),
        ),
    ),
)

DASHBOARDS = (OVERVIEW, UPSTREAMS, MODELS, STREAMS)
