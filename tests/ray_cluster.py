"""A local Ray with Serve for tests: small, quiet, and gone without a trace afterwards."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions

_ROOT = Path(__file__).parents[1]
_SERVICERS = {
    "score": "talkingmachines.v1.score_pb2_grpc.add_ScoreServiceServicer_to_server",
    "vae": "talkingmachines.v1.vae_pb2_grpc.add_VaeServiceServicer_to_server",
}
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # else a token is left in the home folder
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # its warning would be an error here
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(_ROOT),
    "RAY_worker_niceness": "0",  # beyond what the tests have; 15 starves them on a busy machine
    # Started on demand; Ray would keep one idle worker for each processor.
    "RAY_worker_maximum_startup_concurrency": "4",
}


@contextmanager
def cluster(services: Sequence[str] = ("score", "vae"), *, cpus: int = 8) -> Iterator[str]:
    """A Ray of one node whose gRPC ingress knows these services; gives its address.

    `cpus` is what Ray is told, so that more fits than the machine has.
    """
    quiet = {**_QUIET, "RAY_TEST_OWNER": str(os.getpid())}
    before = {name: os.environ.get(name) for name in quiet}
    os.environ.update(quiet)
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need a short path
    port = _free_port()
    try:
        ray.init(
            num_cpus=cpus,
            num_gpus=0,
            include_dashboard=False,
            configure_logging=False,
            log_to_driver=False,
            object_store_memory=128 << 20,
            _temp_dir=folder,
        )
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=HTTPOptions(host="127.0.0.1", port=_free_port()),
            grpc_options=gRPCOptions(
                port=port, grpc_servicer_functions=[_SERVICERS[name] for name in services]
            ),
        )
        yield f"127.0.0.1:{port}"
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
