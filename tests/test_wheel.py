"""What an installed wheel can do, in any folder, without the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from onenet_bench import space

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, unpacked as pip does."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def call(installed: Path, cwd: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "onenet_bench", *words]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_is_what_runs(installed: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [sys.executable, "-c", "import onenet_bench; print(onenet_bench.__file__)"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(installed))


def test_types_and_licence_come_with_the_wheel(installed: Path) -> None:
    assert (installed / "onenet_bench" / "py.typed").exists()
    (licence,) = installed.glob("*.dist-info/licenses/LICENSE")
    assert licence.read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_spaces_come_with_the_wheel(installed: Path, tmp_path: Path) -> None:
    assert [s["name"] for s in json.loads(call(installed, tmp_path, "spaces", "--json"))] == space.names()


def test_a_sweep_from_the_wheel_ends_with_a_report(installed: Path, tmp_path: Path) -> None:
    words = ("sweep", "--space", "spatial_kernel", "--resolution", "32", "--epochs", "1", "--trials", "1", "--json")
    said = json.loads(call(installed, tmp_path, *words))
    assert said["ended"] == "1 candidate was trained"
    assert (tmp_path / said["report"]).stat().st_size > 1_000_000
    assert (tmp_path / said["run"] / "ledger.jsonl").exists()
