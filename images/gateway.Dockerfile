# syntax=docker/dockerfile:1
# The gateway, and whoever only calls: `helm test`. From the repository's root:
#   docker build -f images/gateway.Dockerfile -t talkingmachines/gateway:0.1.0 .
ARG PYTHON=3.12.12-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY talkingmachines talkingmachines
RUN /opt/venv/bin/pip install --constraint constraints.txt '.[gateway,cli,cluster,buckets]'

FROM python:${PYTHON}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="talkingmachines gateway" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 app \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin app
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY services/runtime services/runtime
COPY services/gateway services/gateway
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 50050 8080 9400
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "services.gateway"]
