"""What every test shares: a machine of two cores, used evenly, and no clock in properties."""

import os

from hypothesis import HealthCheck, settings

from services.runtime.logs import spare_grpc

# Two intra-op threads on two cores gain little and make parallel test processes fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is no reason to fail; the same examples come every time.
settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")

# pytest keeps every record of a test, also of tests that never configure our logs.
spare_grpc()
