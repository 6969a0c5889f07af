"""How many replicas of an engine Ray Serve keeps, and how it treats them.

Beside the apps, which give this to Serve. Nothing here imports Ray: these are the words of Serve's
own configuration. Every default of Serve's that would hurt streams is set on purpose.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from services.runtime.attachments import Terms
from services.runtime.scaling import Headroom
from services.runtime.settings import Nested

_UNARY = 4  # calls besides the attachments: they are short
_STOP_SECONDS = 10.0  # beyond the longest attachment, for the engine to close


class Replicas(Nested):
    """How many replicas, and what each is given."""

    least: Annotated[int, Field(ge=1)] = 1  # the floor: sessions start faster than replicas
    most: Annotated[int, Field(ge=1)] = 1
    # Room for those who call next, kept by `services.runtime.scaling`.
    busy: Annotated[float, Field(gt=0, le=1)] = 0.8  # of all slots, what may be taken
    spare: Annotated[int, Field(ge=0)] = 2  # slots that are free besides, however few are taken
    ahead_seconds: Annotated[float, Field(ge=0)] = (
        120.0  # that growth is followed: a start takes it
    )
    quiet_seconds: Annotated[float, Field(ge=0)] = 600.0  # unneeded, until one is taken away
    step_seconds: Annotated[float, Field(ge=0)] = 30.0  # until the next one is
    cpus: Annotated[float, Field(ge=0)] = 1.0  # of each process, as Ray counts them
    gpus: Annotated[float, Field(ge=0)] = 0.0  # of each process

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.least > self.most:
            raise ValueError("least must not be more than most")
        return self

    @property
    def policy(self) -> dict[str, Any]:
        """What the policy is told, besides the slots of a replica."""
        names = ("busy", "spare", "ahead_seconds", "quiet_seconds", "step_seconds")
        return {name: getattr(self, name) for name in names}

    @property
    def process(self) -> dict[str, float]:
        """What Ray is asked for; it takes no resource of which nothing is asked."""
        asked = {"CPU": self.cpus, "GPU": self.gpus}
        return {name: amount for name, amount in asked.items() if amount}


def deployment(replicas: Replicas, terms: Terms, *, slots: int) -> dict[str, Any]:
    """The options of a Serve deployment in which one stream is one attachment.

    Args:
        slots: sessions of one replica at most.
    """
    return {
        # Serve's 5 would leave slots empty. What is over the slots is refused by the replica
        # itself, at once and with a reason; Serve would let it wait in the proxy.
        "max_ongoing_requests": slots + terms.headroom + _UNARY,
        # Without a limit, callers would wait in the proxy for as long as nobody is free.
        "max_queued_requests": 8 * (slots + _UNARY),
        "autoscaling_config": {
            "min_replicas": replicas.least,
            "initial_replicas": replicas.least,
            "max_replicas": replicas.most,
            # One stream is one ongoing request: what is counted are sessions.
            "policy": {
                "policy_function": f"{Headroom.__module__}:{Headroom.__name__}",
                "policy_kwargs": {"slots": slots, **replicas.policy},
            },
            # Serve's delays come after the policy, which has its own.
            "upscale_delay_s": 0.0,
            "downscale_delay_s": 0.0,
            # A model takes a minute to load: Serve's means over 30 s would ask late. Counts reach
            # it every 10 s unless RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S says
            # otherwise.
            "look_back_period_s": 12.0,
        },
        # A replica that stops is sent nothing new and waits for its streams, which it cannot tell
        # of it (Serve does not tell the replica): they leave by their age. Serve's 20 s would cut
        # them off.
        "graceful_shutdown_timeout_s": terms.longest_seconds + _STOP_SECONDS,
        "graceful_shutdown_wait_loop_s": 0.2,
        # Serve gives up after three failures; 10 s apart and 30 s long, that is two minutes.
        "health_check_period_s": 2.0,
        "health_check_timeout_s": 5.0,
        "ray_actor_options": {"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
    }
