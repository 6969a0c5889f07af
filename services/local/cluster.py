"""Ray on this machine, with both model services in it, as small as it gets.

Beside the path: fleet → **cluster** → Ray Serve → score, vae. The applications are those of the
cluster, made by the same builders; only their settings are this machine's. Ray listens on loopback;
Serve's ingress and its replicas listen everywhere and cannot be told otherwise: the fleet's token
guards the one, Ray's the others.

`python -m services.local.cluster ORDER` runs it until SIGTERM; the fleet starts that as a process
of its own, because Ray blocks while it starts and ends best with a process.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

LOOPBACK = "127.0.0.1"
APPLICATIONS = ("score", "vae")
TRY_AGAIN = os.EX_TEMPFAIL  # exit code: Ray itself did not come up

_OBJECT_STORE_BYTES = 80 * 1024**2  # the least that Ray accepts: nothing of ours goes through it
_SERVICERS = [
    "talkingmachines.v1.score_pb2_grpc.add_ScoreServiceServicer_to_server",
    "talkingmachines.v1.vae_pb2_grpc.add_VaeServiceServicer_to_server",
]
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Streams of both engines go through one proxy here: a dead one must be missed at once, not
    # after Serve's 10 s.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "3",
    # Beyond what this process has: Ray's own 15 starves the engines wherever something else runs.
    "RAY_worker_niceness": "0",
    # Ray would kill replicas when other programs fill the memory; calls are worth more than that.
    "RAY_memory_monitor_refresh_ms": "0",
    # Nobody else takes part: Ray then listens on loopback alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}

# The last line of a traceback.
_RAISED = re.compile(r"\s*((?:[a-z_]\w*\.)+[A-Z]\w+: .+|[A-Z]\w+(?:Error|Settings): .+)")


@dataclass(frozen=True, slots=True)
class Order:
    """What is to run."""

    arguments: dict[str, dict[str, Any]]  # of each application's builder, by name
    grpc_port: int  # of Serve's ingress, shared by both applications
    http_port: int  # Serve wants one; nobody uses it
    cpus: int  # that Ray is to believe in
    folder: str  # for Ray's own files; short, because sockets in it have short names

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Order:
        return cls(**json.loads(text))


@contextmanager
def cluster(order: Order) -> Iterator[None]:
    """Ray and both applications, while entered. Blocks until they serve, and until all is gone.

    Raises:
        RuntimeError: an application does not come up.
    """
    os.environ.update(_ENVIRONMENT)
    try:
        _start(order)
        _serve(order)
        yield
    finally:
        _stop()


def _start(order: Order) -> None:
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=order.cpus,
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            namespace="talkingmachines",
            _temp_dir=order.folder,
        )
    except Exception as error:  # noqa: BLE001  Ray has no better name for it
        # It waits 30 s for its own processes and cannot be told otherwise: a busy machine needs
        # more. They end with this process.
        print(f"Ray does not start: {error}", flush=True)
        sys.exit(TRY_AGAIN)


def _serve(order: Order) -> None:
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions

    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=LOOPBACK, port=order.http_port),
        grpc_options=gRPCOptions(port=order.grpc_port, grpc_servicer_functions=_SERVICERS),
        logging_config={"log_level": "ERROR"},
    )
    builders = {name: import_module(f"services.{name}.app") for name in APPLICATIONS}
    targets = [
        serve.RunTarget(
            target=builder.app(order.arguments[name]),
            name=name,
            route_prefix=f"/{name}",  # without one, the gRPC proxy does not find it either
        )
        for name, builder in builders.items()
    ]
    try:
        serve.run_many(targets)
    except RuntimeError as error:
        raise RuntimeError(_complaint() or str(error)) from error


def _complaint() -> str:
    """What replicas failed with, each once; Serve keeps their tracebacks."""
    from ray import serve

    told = [
        f"{deployment.message}\n{application.message}"
        for application in serve.status().applications.values()
        for deployment in application.deployments.values()
    ]
    lines = [line for text in told for line in text.splitlines()]
    raised = (_RAISED.match(line) for line in lines)
    found = dict.fromkeys(match.group(1) for match in raised if match)
    return "\n".join(
        line for line in found if not line.endswith("Traceback (most recent call last):")
    )


def _stop() -> None:
    import ray
    from ray import serve

    with suppress(Exception):  # whatever is wrong with it, Ray goes next
        serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


def _end(*_: object) -> None:
    sys.exit(0)


def main() -> None:
    order = Order.from_json(sys.argv[1])
    signal.signal(signal.SIGTERM, _end)
    try:
        with cluster(order):
            signal.signal(signal.SIGTERM, _end)  # Ray has put its own in the place
            print("the engines serve", flush=True)
            while True:
                signal.pause()
    except RuntimeError as error:
        sys.exit(f"\n{error}")


if __name__ == "__main__":
    main()
