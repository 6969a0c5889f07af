"""What every test shares: a machine of two cores, used evenly."""

import os

# Two intra-op threads on two cores gain little and make parallel test processes fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
