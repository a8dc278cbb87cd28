"""Every test of data has a cache of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onenet_bench.data import _cache


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that ``cache_dir()`` names, not made yet; what the process holds in memory is forgotten."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ONENET_BENCH_CACHE", str(folder))
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no test pulls the plug, and the disk is slow
    monkeypatch.setattr(_cache, "_unwritten", {})
    monkeypatch.setattr(_cache, "_warned", False)
    return folder
