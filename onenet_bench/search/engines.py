"""Engines by name, and what they are told on the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from onenet_bench.errors import RecipeError, known
from onenet_bench.search import local

if TYPE_CHECKING:
    from onenet_bench.search.sweep import Engine

SHARE = 0.8
"""Of the device's memory that the trials of a run may take together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Orders:
    """How trials are carried out. Nothing here decides what they find.

    ``workers`` trials at a time with ``threads`` CPU threads each, on ``device``, their steps ``compiled`` or not.
    ``limit_s`` is the time that one may take. The rest is Ray's: see ``cluster.Cluster``.
    """

    engine: str = "local"
    workers: int | None = None
    threads: int | None = None
    device: str = "cpu"
    compiled: bool = False
    limit_s: float | None = None
    address: str | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise RecipeError(known("engine", self.engine, ENGINES))
        for name in ("address", "cpus_per_trial", "gpus_per_trial"):
            if self.engine != "ray" and getattr(self, name) is not None:
                option = "--" + name.replace("_", "-")
                raise RecipeError(
                    f"{option} tells Ray where trials run, but the engine is {self.engine}; add --engine ray"
                )

    def make(self) -> Engine:
        """The engine. Raises RecipeError for what it cannot do."""
        return ENGINES[self.engine](self)

    def memory_mib(self) -> float | None:
        """What one trial may take of the memory of the device; None with Ray, whose devices may be other machines'."""
        if self.engine != "local":
            return None
        workers, _ = local.plan_workers(self.workers, self.threads)
        if self.device == "cpu":
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        else:
            import torch

            total = torch.cuda.get_device_properties(self.device).total_memory
        return SHARE * total / 2**20 / workers


def _local(orders: Orders) -> Engine:
    workers, threads = local.plan_workers(orders.workers, orders.threads)
    return partial(
        local.run, workers=workers, threads=threads, device=orders.device, limit_s=orders.limit_s,
        compiled=orders.compiled,
    )  # fmt: skip


def _ray(orders: Orders) -> Engine:
    from onenet_bench.search import cluster, connection

    settings = cluster.Cluster(address=orders.address, cpus=orders.cpus_per_trial, gpus=orders.gpus_per_trial)
    connection.check(orders.address)
    return partial(
        cluster.run, workers=orders.workers, threads=orders.threads or 1, device=orders.device, cluster=settings,
        limit_s=orders.limit_s, compiled=orders.compiled,
    )  # fmt: skip


ENGINES: dict[str, Callable[[Orders], Engine]] = {"local": _local, "ray": _ray}
"""Name -> how it is made."""
