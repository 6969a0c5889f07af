# syntax=docker/dockerfile:1
# Score and VAE, under Ray: heads and workers of both run this image. From the repository's root:
#   docker build -f images/engine.Dockerfile -t talkingmachines/engine:0.1.0 .
# For a machine without GPU, smaller by gigabytes:
#   docker build -f images/engine.Dockerfile --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu \
#     --build-arg RUNTIME=debian:12.12-slim -t talkingmachines/engine:0.1.0 .
# CUDA's libraries come with torch's wheels; the base brings what the driver wants.
ARG RUNTIME=nvidia/cuda:13.0.1-base-ubuntu24.04

FROM ${RUNTIME} AS python
# bash and wget are what KubeRay's own commands and probes call.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bash ca-certificates python3 wget \
    && rm -rf /var/lib/apt/lists/*

FROM python AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu130
RUN python3 -m venv /opt/venv
COPY pyproject.toml README.md LICENSE constraints.txt ./
# torch first and by exact version, from where builds for this hardware are.
RUN /opt/venv/bin/pip install --extra-index-url "${TORCH_INDEX}" "$(grep '^torch==' constraints.txt)"
COPY talkingmachines talkingmachines
RUN /opt/venv/bin/pip install --constraint constraints.txt '.[server,engine,buckets]'

FROM python
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="talkingmachines engine" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 app \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin app
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY services/runtime services/runtime
COPY services/accelerator services/accelerator
COPY services/score services/score
COPY services/vae services/vae
COPY models models
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 10001:10001
# KubeRay gives its own command; alone, as compose runs it, one service by name.
ENTRYPOINT []
CMD ["python", "-m", "services.score"]
