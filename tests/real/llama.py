"""Serves a GGUF file with the HTTP server of llama.cpp until SIGTERM: `python llama.py MODEL KEY`.

A process of its own, because the server logs to file descriptor 2 whatever Python thinks of it, and because an upstream
is never in the gateway's process. Prints the URL when it listens, on a port that the kernel has chosen.
"""

import signal
import sys

import xllamacpp

NAME = "tiny"


def parameters(model: str, key: str) -> xllamacpp.CommonParams:
    """A server for tests: 4 slots of 2,048 tokens, one thread, text without end if a caller wants that."""
    chosen = xllamacpp.CommonParams()
    chosen.model.path = model
    chosen.model_alias = [NAME]
    chosen.hostnames = ["127.0.0.1"]
    chosen.port = 0
    chosen.api_keys = [key]
    chosen.n_ctx = 8192
    chosen.n_parallel = 4
    chosen.ctx_shift = True
    chosen.cpuparams.n_threads = 1
    chosen.warmup = False
    chosen.embedding = True
    chosen.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    chosen.endpoint_metrics = chosen.endpoint_slots = True
    return chosen


def main(model: str, key: str) -> None:
    """Serve until told to stop."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    server = xllamacpp.Server(parameters(model, key))
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server


if __name__ == "__main__":
    main(*sys.argv[1:])
