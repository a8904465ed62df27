"""Waiting for the nodes that a cluster's autoscaler adds."""

import time

import ray

POLL_S = 2.0
PRINT_EVERY_S = 30.0


def wait_for_nodes(bundles: list[dict[str, float]], minutes: float) -> None:
    """Request nodes from the cluster's autoscaler, and wait until they are there or time is up.

    Ray starts workers as nodes arrive, so a run starts only when all have arrived. The request is
    withdrawn at the end: otherwise the nodes would stay up after the run.

    Args:
        bundles: What each worker reserves.
        minutes: How long to wait; the caller checks whether the nodes have arrived.
    """
    wanted = {key: sum(bundle.get(key, 0) for bundle in bundles) for key in bundles[0]}
    if not _lacking(wanted):
        return
    # Its imports would cost every worker time, and only drivers need them.
    from ray.autoscaler.sdk import request_resources

    until, printed = time.monotonic() + 60 * minutes, float("-inf")
    request_resources(bundles=bundles)
    try:
        while (lacking := _lacking(wanted)) and time.monotonic() < until:
            if time.monotonic() - printed >= PRINT_EVERY_S:
                printed = time.monotonic()
                print(f"waiting for nodes: the cluster has {lacking}", flush=True)
            time.sleep(POLL_S)
    finally:
        request_resources(bundles=[])


def _lacking(wanted: dict[str, float]) -> str:
    """What the cluster has too little of, in words; empty if nothing."""
    available = ray.cluster_resources()
    return ", ".join(
        f"{available.get(key, 0):g} of {amount:g} {key}"
        for key, amount in wanted.items()
        if available.get(key, 0) < amount
    )
