"""Ray: joining or starting a cluster, and spreading calls over it.

Ray places processes, restarts those that fail and moves data; none of this is done here. Needs the
extra ``[ray]``.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from itertools import islice
from typing import Any, TypeVar

__all__ = ["RETRIES", "joined", "placed", "spread"]

T = TypeVar("T")
R = TypeVar("R")

RETRIES = 10
"""How often a call is repeated if its worker or machine is lost."""


@contextmanager
def joined(address: str | None = None, *, logs: bool = False) -> Iterator[None]:
    """Join the Ray cluster at ``address``, and leave it at the end.

    Args:
        address: ``host:port``; "local" starts a cluster on this machine alone, which ends with the
            block. None follows Ray's rule: ``RAY_ADDRESS``, else a cluster that runs on this
            machine, else as "local".
        logs: print the output of its processes; otherwise output within the block, such as Ray's
            notices of lost workers, goes to standard error.

    Raises:
        ImportError: if Ray is missing.
        OSError: if there is no such cluster.
        ValueError: if ``address`` is not as described.
    """
    try:
        import ray
    except ImportError as e:
        raise ImportError("--ray needs Ray: pip install 'flowturbo[ray]'") from e
    host, _, port = (address or "").rpartition(":")
    if host and "/" not in host and port.isdecimal():  # Ray tries for minutes
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as e:
            raise OSError(f"--ray-address {address}: no cluster answers there ({e})") from e
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that is started here
    try:
        ray.init(address, include_dashboard=False, log_to_driver=logs, logging_level="warning")
    except (ConnectionError, ValueError) as e:
        reason = " ".join(str(e).split())
        raise type(e)(
            f"--ray-address {address}: {reason}; give host:port of a cluster, or local"
        ) from e
    try:
        with nullcontext() if logs else redirect_stdout(sys.stderr):  # of Ray's notices
            yield
    finally:
        ray.shutdown()


def placed(device: str) -> tuple[str, int]:
    """Where each process of the cluster computes.

    Args:
        device: as on the command line; "auto" is CUDA if the cluster has GPUs.

    Returns:
        Its device, and how many GPUs it takes: 1 or 0.

    Raises:
        ValueError: if ``device`` has a number.
    """
    import ray

    if device.startswith("cuda:"):
        raise ValueError(f"device={device!r}: Ray chooses the GPU of each process; pass cuda")
    if device == "auto":
        device = "cuda" if ray.cluster_resources().get("GPU") else "cpu"
    return device, int(device == "cuda")


def spread(
    function: Callable[[T], R], arguments: Iterable[T], *, gpus: int = 0
) -> Generator[tuple[T, R], None, None]:
    """Each argument with ``function(argument)``, computed on the cluster, in any order.

    A call whose worker or machine is lost is repeated, `RETRIES` times at most, so calls should be
    safe to repeat. ``function`` is sent to each process once, with its attributes. At most twice as
    many calls are submitted as run at once; those that are pending when the caller stops are
    cancelled.

    Args:
        function: computes on one CPU core, or on a GPU.
        arguments: any number of arguments.
        gpus: number of GPUs for each call, 0 or 1.

    Raises:
        OSError: if workers are lost again and again.
        Exception: what ``function`` raises.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    def call(argument: T) -> R:
        return function(argument)

    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES, max_calls=0)(call)
    left, running = iter(arguments), dict[Any, T]()
    try:
        while True:
            slots = int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1))
            for argument in islice(left, max(0, 2 * max(1, slots) - len(running))):
                running[task.remote(argument)] = argument
            if not running:
                return
            (done, *_), _ = ray.wait([*running])
            yield running.pop(done), ray.get(done)
    except RayTaskError as e:
        raise e.cause from None
    except RayError as e:
        raise OSError(f"Ray gave up: {' '.join(str(e).split())}") from e
    finally:
        for each in running:
            ray.cancel(each, force=True)
