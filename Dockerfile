ARG BASE=python:3.12-slim-bookworm

# Builds an environment with exactly what the lock file names, and the gateway in it.
FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN ["python", "-m", "venv", "/opt/build"]
RUN ["python", "-m", "venv", "--without-pip", "/opt/gateway"]
COPY requirements/build.txt requirements/run.txt requirements/
RUN ["/opt/build/bin/pip", "install", "--require-hashes", "-r", "requirements/build.txt"]
RUN ["/opt/build/bin/pip", "--python", "/opt/gateway/bin/python", "install", "--require-hashes", "-r", "requirements/run.txt"]
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
RUN ["/opt/build/bin/pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."]
RUN ["/opt/build/bin/pip", "--python", "/opt/gateway/bin/python", "install", "--no-index", "--no-deps", "--find-links", "dist", "gateway"]

# Holds that environment and nothing of what made it.
FROM ${BASE}
LABEL org.opencontainers.image.title="gateway" \
      org.opencontainers.image.description="A reverse proxy that services point their OpenAI base URL at." \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/gateway/bin:$PATH PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
COPY --from=build /opt/gateway /opt/gateway
USER 10001:10001
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "from urllib.request import *; build_opener(ProxyHandler({})).open('http://127.0.0.1:8080/healthz', timeout=2)"]
ENTRYPOINT ["gateway"]
CMD ["serve"]
