"""Waiting for the nodes that a cluster's autoscaler is to add."""

import time

import ray

POLL_S = 2.0
SAY_EVERY_S = 30.0


def wait_for_nodes(bundles: list[dict[str, float]], minutes: float) -> None:
    """Ask the cluster's autoscaler for nodes, and wait until they are there or time is out.

    Ray starts workers in the order in which nodes come, so a run begins when all have. The request
    is taken back in the end: it would keep the nodes up after the run.

    Args:
        bundles: what each worker reserves.
        minutes: how long to wait at most; whoever waits says what it means if they do not come.
    """
    wanted = {key: sum(bundle.get(key, 0) for bundle in bundles) for key in bundles[0]}
    if not _lacking(wanted):
        return
    # Its imports would cost every worker time, and only a driver asks.
    from ray.autoscaler.sdk import request_resources

    until, said = time.monotonic() + 60 * minutes, float("-inf")
    request_resources(bundles=bundles)
    try:
        while (lacking := _lacking(wanted)) and time.monotonic() < until:
            if time.monotonic() - said >= SAY_EVERY_S:
                said = time.monotonic()
                print(f"waiting for nodes: the cluster has {lacking}", flush=True)
            time.sleep(POLL_S)
    finally:
        request_resources(bundles=[])


def _lacking(wanted: dict[str, float]) -> str:
    """What the cluster has too little of, in words; empty: nothing."""
    there = ray.cluster_resources()
    return ", ".join(
        f"{there.get(key, 0):g} of {amount:g} {key}"
        for key, amount in wanted.items()
        if there.get(key, 0) < amount
    )
