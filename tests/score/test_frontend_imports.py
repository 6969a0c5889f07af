"""A GPU machine has torch, safetensors, einops and numpy: what serves may import no more."""

import subprocess
import sys

_HEAVY = ("transformers", "diffusers", "av", "ray", "grpc", "google.protobuf", "pydantic")


def test_loading_and_hearing_import_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "import services.score.checkpoint.inspection, services.score.frontend.track\n"
        f"found = [name for name in {_HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'imported {found}' if found else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
