"""What every trial's process needs, loaded once: the server that they are forked from imports this file.

Importing it is its whole use. Among what it loads is ``torch._dynamo``, which the first step of any optimiser would
import otherwise, in seconds of every trial, and the pixels of the task that the environment names. Nothing is computed:
a process that has run kernels may hold threads, which a fork does not take along.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
from contextlib import suppress

MODULES = ("onenet_bench.evaluate", "onenet_bench.search.local", "torch._dynamo", "torch.profiler", "numpy.ctypeslib")


def load() -> None:
    """Load it all. What cannot be loaded is left for the trial to say, and Ctrl-C is the driver's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from onenet_bench.errors import OnenetBenchError
    from onenet_bench.record import provenance
    from onenet_bench.search import trial
    from onenet_bench.task import Task

    for name in MODULES:
        with suppress(ImportError):
            importlib.import_module(name)
    with suppress(OnenetBenchError, KeyError):
        trial.pixels(Task.from_dict(json.loads(os.environ[trial.PIXELS_OF])))
    provenance()
    gc.collect()
    gc.freeze()  # or the collector would write to every page of it, and so copy it, in every trial


load()
