"""The README's commands do what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line]


def test_both_commands_stand_first_and_are_targets() -> None:
    assert commands()[:2] == ["make sweep", "make test"]
    for command in commands()[:2]:
        dry = subprocess.run([*command.split(), "-n"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert (".venv/bin/onenet-bench sweep" in dry.stdout) == (command == "make sweep")
        assert ("pytest" in dry.stdout) == (command == "make test")


def pictures(folder: Path) -> None:
    """Discs on noise, drawn as a user's camera would have them: PNGs of several sizes."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for i in range(12):
        height, width = 80 + 8 * (i % 3), 96
        y, x = np.mgrid[:height, :width]
        disc = (x - generator.integers(20, 70)) ** 2 + (y - generator.integers(20, 60)) ** 2 < 18**2
        image = generator.normal(110, 25, (height, width, 3)) + disc[..., None] * [70, 20, -30]
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{i:02d}.png")
        Image.fromarray(disc.astype(np.uint8)).save(folder / "masks" / f"{i:02d}.png")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (own_net,) = blocks("toml")
    (folder / "my_net.toml").write_text(own_net, encoding="utf-8")
    pictures(folder / "pictures")
    return folder


def test_the_commands_of_the_journey_work_in_any_folder(home: Path) -> None:
    """All of them, in their order, since they build on each other."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    said = {}
    for command in commands()[2:]:
        done = subprocess.run(
            shlex.split(command), cwd=home, env={**os.environ, "PATH": path}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        said[command] = done.stdout
    assert len(list((home / "results/runs").iterdir())) == 2
    pages = list((home / "reports").glob("depth_scale-*.html"))
    assert len(pages) == 2
    pages.append(home / "reports/screen-depth_scale.html")
    assert all(page.stat().st_size > 1_000_000 for page in pages)  # plotly is inside
    resumed = said["onenet-bench sweep --resume latest --trials 6"]
    assert "6 candidates were trained" in resumed
    assert "miou" in said["onenet-bench train my_net.toml --epochs 2"]


def test_the_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    exec(code, {})
    assert int(capsys.readouterr().out) > 0


def test_the_toml_of_the_readme_says_what_its_comments_promise() -> None:
    (own_net,) = blocks("toml")
    assert [stage["kind"] for stage in tomllib.loads(own_net)["encoder"]] == ["onenet1d", "separable2d"]
