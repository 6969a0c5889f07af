# syntax=docker/dockerfile:1
# Callers for load tests. From the repository's root:
#   docker build -f images/loadtest.Dockerfile -t talkingmachines/loadtest:0.1.0 .
ARG PYTHON=3.12.12-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY talkingmachines talkingmachines
RUN /opt/venv/bin/pip install --constraint constraints.txt '.[loadtest]'

FROM python:${PYTHON}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="talkingmachines loadtest" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 app \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin app
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY loadtest loadtest
# What callers say, and whom they call where a fleet has nobody.
COPY models/tiny/speech models/tiny/speech
COPY models/tiny/avatars models/tiny/avatars
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "loadtest"]
