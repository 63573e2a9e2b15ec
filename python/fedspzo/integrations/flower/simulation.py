"""Runs a federation by Flower's simulation engine, on one machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from .link import FlowerLink

T = TypeVar("T")

OBJECTS = 128 * 2**20
"""Bytes of Ray's shared memory. Messages are small, and Ray would take a third of the machine's."""


def simulate(
    run: Callable[[FlowerLink], T],
    app: ClientApp,
    *,
    clients: int,
    processes: int = 1,
    timeout: float | None = None,
) -> T:
    """Run a federation's server here and its clients in processes of Flower's simulation engine.

    Args:
        run: plays the rounds, with the link that it is given. It is called in a thread.
        app: the clients (`client_app`).
        clients: number of clients.
        processes: number of processes, each of which loads the model. Default 1.
        timeout: seconds that a client may take. Default None: no limit.

    Returns:
        What `run` returned.

    Raises:
        Exception: what `run` raised.
        RuntimeError: the engine failed.
    """
    from flwr.simulation import run_simulation

    results: list[T] = []
    errors: list[BaseException] = []
    links: list[FlowerLink] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        links.append(FlowerLink(grid, timeout=timeout, poll=0.02))
        try:
            results.append(run(links[0]))
        except BaseException as error:
            errors.append(error)

    with _quiet():
        try:
            run_simulation(
                server,
                app,
                num_supernodes=clients,
                backend_config={
                    "init_args": {
                        "num_cpus": processes,
                        "object_store_memory": OBJECTS,
                        "logging_level": logging.ERROR,
                        "log_to_driver": False,
                    },
                    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                },
            )
        finally:
            for link in links:
                link.close()
    if errors:
        raise errors[0]
    if not results:
        raise RuntimeError("Flower's simulation engine ended before the run; see its log")
    return results[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Flower print errors alone, within a context."""
    log = logging.getLogger("flwr")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
