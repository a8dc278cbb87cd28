"""The check that CI runs: files, locks, regressions by layer, modules of other projects, formats, exit codes."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from onenet_bench import budget, checking, cli, costs, zoo
from onenet_bench.budget import Layer, Verdict
from onenet_bench.errors import BudgetError
from onenet_bench.spec import NetSpec
from tests.specs import specs

ROOT = Path(__file__).parent.parent

SPEC = """\
classes = 2
stem = { kind = "conv2d", channels = 8, repeat = 1 }
encoder = [{ kind = "conv2d", channels = 16 }]
decoder = [{ kind = "conv2d", channels = 8 }]
"""

CHECK = """\
# why this net: it ships on the camera
[[net]]
net = "edge.toml"  # ours
resolution = 64
budget = ["parameters <= 20k", "peak_inference_mib <= 64"]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a spec, a budgets file and its lock; its budgets file."""
    (tmp_path / "edge.toml").write_text(SPEC)
    path = tmp_path / "budgets.toml"
    path.write_text(CHECK)
    checking.check(path, update=True)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """The command line, from its entry point on: (exit code, stdout, stderr)."""

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["onenet-bench", "check", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return command


_names = itertools.count()


@pytest.fixture
def module(tmp_path: Path) -> Callable[..., Path]:
    """Write a module of another project beside a budgets file that holds its ``make``; the budgets file."""

    def write(source: str, entry: str = "", function: str = "make") -> Path:
        name = f"held_{os.getpid()}_{next(_names)}"
        (tmp_path / f"{name}.py").write_text(f"import torch\nfrom torch import nn\n{source}")
        path = tmp_path / "budgets.toml"
        path.write_text(f'[[net]]\nnet = "{name}:{function}"\ninput = [3, 16, 16]\n{entry}')
        return path

    return write


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def finding(facts: checking.CheckFacts, cost: str, exact: bool = True) -> budget.Finding:
    (found,) = (f for f in facts.findings if f.cost == cost and f.exact is exact)
    return found


# Regressions --------------------------------------------------------------------------------------------


def test_a_wider_layer_is_named_with_what_it_grew_by(project: Path, run: Any) -> None:
    edit(project.parent / "edge.toml", "channels = 16", "channels = 24")
    code, out, _ = run(project)
    assert code == 1
    # 3x3, 8 -> 16 channels on 32x32 positions, and then 24: in closed form
    before, after = 9 * 8 * 16 * 32 * 32, 9 * 8 * 24 * 32 * 32
    assert f"encoder.1.channel_1.conv: macs {before:,} -> {after:,} (+50 %)" in out
    assert f"encoder.1.channel_2.conv: parameters {9 * 16 * 16 + 16:,} -> {9 * 24 * 24 + 24:,} (+124 %)" in out
    assert "HEAVIER" in out
    assert "stem.0.conv" not in out  # as before
    facts = checking.check(project)
    for cost in ("parameters", "macs"):
        found = finding(facts, cost)
        assert found.verdict is Verdict.HEAVIER
        assert found.value is not None
        assert found.limit is not None
        assert found.value - found.limit == sum(change.difference for change in found.changes)
        differences = [change.difference for change in found.changes]
        assert differences == sorted(differences, reverse=True)
    assert (
        finding(facts, "parameters").value
        == costs.count(NetSpec.from_toml(project.parent / "edge.toml"), 64).parameters
    )


def test_new_and_removed_layers_are_named(project: Path, run: Any) -> None:
    edit(project.parent / "edge.toml", "channels = 16 }", "channels = 16, repeat = 1 }")
    code, out, _ = run(project)
    assert code == 1
    assert "LIGHTER" in out
    assert f"encoder.1.channel_2.conv: parameters {9 * 16 * 16 + 16:,} (gone)" in out
    checking.check(project, update=True)
    edit(project.parent / "edge.toml", "channels = 16, repeat = 1 }", "channels = 16 }")
    _, out, _ = run(project)
    assert f"encoder.1.channel_2.conv: parameters {9 * 16 * 16 + 16:,} (new)" in out
    assert "encoder.1.channel_2.norm: macs" not in out  # a new layer without MACs says nothing about MACs


def test_a_lighter_net_fails_until_the_lock_keeps_the_gain(project: Path, run: Any) -> None:
    edit(project.parent / "edge.toml", "channels = 16", "channels = 12")
    code, out, _ = run(project)
    assert (code, "LIGHTER" in out, "--update" in out) == (1, True, True)
    lightest = finding(checking.check(project), "macs").changes[0]
    assert lightest.difference == min(change.difference for change in finding(checking.check(project), "macs").changes)
    assert run(project, "--update")[0] == 0
    assert run(project)[0] == 0


def test_weight_that_moves_between_layers_is_seen() -> None:
    counted = budget.Counted(costs={}, layers={"a": Layer(1, 5), "b": Layer(3, 5)})
    (parameters, macs) = budget.compare({"n": counted}, {}, {"n": {"a": Layer(3, 5), "b": Layer(1, 5)}})
    assert (parameters.verdict, macs.verdict) == (Verdict.MOVED, Verdict.OK)
    assert [str(change) for change in parameters.changes] == [
        "b: parameters 1 -> 3 (+200 %)",
        "a: parameters 3 -> 1 (-66.7 %)",
    ]


def test_a_ceiling_fails_and_no_update_mends_it(project: Path, run: Any) -> None:
    edit(project, "peak_inference_mib <= 64", "peak_inference_mib <= 0.1")
    code, out, _ = run(project)
    peak = costs.count(NetSpec.from_toml(project.parent / "edge.toml"), 64).peak_inference_mib
    assert code == 1
    assert f"OVER      peak_inference_mib  {budget.number(peak)} > 0.1" in out
    assert run(project, "--update")[0] == 1
    edit(project, "peak_inference_mib <= 0.1", f"peak_inference_mib <= {peak!r}")
    assert run(project)[0] == 0  # a ceiling may be reached


def test_a_net_that_the_lock_does_not_hold_fails(project: Path, run: Any) -> None:
    edit(project, "resolution = 64", "resolution = [64, 128]")
    facts = checking.check(project)
    verdicts = {f.net: f.verdict for f in facts.findings if f.exact}
    assert verdicts == {"edge.toml @ 64x128": Verdict.UNLOCKED, "edge.toml @ 64x64": Verdict.STALE}
    assert run(project)[0] == 1
    assert run(project, "--update")[0] == 0
    assert list(budget.read_lock(budget.lock_path(project))) == ["edge.toml @ 64x128"]
    budget.lock_path(project).unlink()
    code, out, _ = run(project)
    assert (code, "UNLOCKED" in out, "--update" in out) == (1, True, True)


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (805306368, 1207959552, "805,306,368 -> 1,207,959,552 (+50 %)"),
        (16388216, 16388217, "16,388,216 -> 16,388,217 (+6.1e-06 %)"),
        (3, 2, "3 -> 2 (-33.3 %)"),
        (1, 2500, "1 -> 2,500 (+249,900 %)"),
        (0, 7, "0 -> 7"),
    ],
)
def test_growth_reads(before: int, after: int, shown: str) -> None:
    assert budget.from_to(before, after) == shown


@pytest.mark.parametrize(
    ("limit", "number"), [("4.1M", 4_100_000), ("1.001k", 1001), ("2e3k", 2_000_000), ("1_0.5e-1", 1.05)]
)
def test_a_ceiling_is_the_number_that_is_written(limit: str, number: float) -> None:
    assert budget.Budget.parse(f"macs <= {limit}").limit == number


def test_a_ceiling_can_be_copied_from_what_is_shown() -> None:
    peak = 33.00390625  # OneNet_e,d,4's of 256 x 256, which has ten digits
    assert budget.Budget.parse(f"peak_inference_mib <= {budget.number(peak)}").limit == peak


def test_numbers_are_told_apart_from_their_ceilings() -> None:
    assert budget.number(12_000_000_000.0) == "12,000,000,000"
    assert budget.number(64.00003) != budget.number(64.0)


# Updating -----------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.lists(specs(), min_size=1, max_size=3), st.integers(1, 2))
def test_the_check_passes_right_after_an_update(
    tmp_path_factory: pytest.TempPathFactory, nets: Any, times: int
) -> None:
    folder = tmp_path_factory.mktemp("drawn")
    path, text, sides = folder / "budgets.toml", "", [2 * times * spec.total_scale for spec in nets]
    for i, spec in enumerate(nets):
        (folder / f"{i}.toml").write_text(toml(spec))
        text += f'[[net]]\nnet = "{i}.toml"\nresolution = {sides[i]}\n'
    path.write_text(text)
    assert not checking.check(path).passed
    assert checking.check(path, update=True).passed
    facts = checking.check(path)
    assert facts.passed
    assert not facts.differences
    for i, spec in enumerate(nets):  # the layers add up to what is counted otherwise
        whole = costs.count(spec, sides[i])
        locked = {f.cost: f.limit for f in facts.findings if f.net == f"{i}.toml @ {sides[i]}x{sides[i]}"}
        assert locked == {"parameters": whole.parameters, "macs": whole.macs}


def toml(spec: NetSpec) -> str:
    """``spec`` as a file."""

    def value(v: Any) -> str:
        if isinstance(v, dict):
            return "{" + ", ".join(f"{k} = {value(x)}" for k, x in v.items()) + "}"
        return f"[{', '.join(map(value, v))}]" if isinstance(v, list) else json.dumps(v)

    return "\n".join(f"{key} = {value(v)}" for key, v in spec.to_dict().items())


def test_an_update_leaves_the_budgets_file_and_an_equal_lock_alone(project: Path, run: Any) -> None:
    lock = budget.lock_path(project)
    os.utime(lock, ns=(1, 1))
    assert run(project, "--update")[:2] == (
        0,
        run(project)[1].replace("4 limits checked, all hold", "budgets.lock was up to date"),
    )
    assert lock.stat().st_mtime_ns == 1
    edit(project.parent / "edge.toml", "channels = 16", "channels = 12")
    code, out, _ = run(project, "--update")
    assert (code, project.read_text()) == (0, CHECK)
    assert "encoder.1.channel_1.conv: macs" in out
    assert "budgets.lock is written anew: 2 differences" in out


def test_an_update_that_dies_leaves_the_old_lock_whole(project: Path, monkeypatch: Any, run: Any) -> None:
    lock = budget.lock_path(project)
    old = lock.read_bytes()
    edit(project.parent / "edge.toml", "channels = 16", "channels = 12")
    for name, death in (("replace", PermissionError(13, "Permission denied")), ("fsync", KeyboardInterrupt())):
        with monkeypatch.context() as dying:

            def die(*_: object, death: BaseException = death) -> None:
                raise death

            dying.setattr(os, name, die)
            with pytest.raises((BudgetError, KeyboardInterrupt)):
                checking.check(project, update=True)
        assert lock.read_bytes() == old
        assert sorted(p.name for p in project.parent.iterdir()) == ["budgets.lock", "budgets.toml", "edge.toml"]
    assert run(project)[0] == 1


def test_the_lock_is_on_the_disk_before_it_takes_the_name(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def note(*args: Any, name: str = name, real: Any = real) -> None:
            done.append(name)
            real(*args)

        monkeypatch.setattr(os, name, note)
    budget.lock_path(project).unlink()
    checking.check(project, update=True)
    assert done == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_a_lock_that_cannot_be_written_is_one_sentence(project: Path, run: Any) -> None:
    lock = budget.lock_path(project)
    lock.unlink()
    lock.mkdir()
    one_sentence(run(project, "--update"), "the lock's folder must be writable", "budgets.lock")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("schema = 1", "schema = 2"),
        ("schema = 1", "<<<<<<< HEAD"),
        ('"stem.0.conv" = [224, ', '"stem.0.conv" = [225, '),
        ('"stem.0.conv" = [224, ', '"stem.0.conv" = [-224, '),
        ('"stem.0.conv" = [224, ', '"stem.0.conv" = ["224", '),
        ("macs = ", "steps = "),
    ],
)
def test_a_damaged_lock_is_one_sentence_and_an_update_writes_it_anew(
    project: Path, run: Any, old: str, new: str
) -> None:
    lock = budget.lock_path(project)
    whole = lock.read_text()
    edit(lock, old, new)
    one_sentence(run(project), "budgets.lock", "--update")
    assert run(project, "--update")[0] == 0
    assert lock.read_text() == whole


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"])),
            st.builds(Layer, st.integers(0, 2**62 // 9), st.integers(0, 2**62 // 9)),
            max_size=8,
        ),
        max_size=3,
    )
)
def test_a_lock_holds_every_name(tmp_path_factory: pytest.TempPathFactory, nets: dict[str, dict[str, Layer]]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.lock"
    budget.write_lock(path, nets)
    assert budget.read_lock(path) == nets


# What a user can do wrong --------------------------------------------------------------------------------


def one_sentence(ended: tuple[int, str, str], *words: str) -> None:
    code, out, err = ended
    assert (code, out) == (2, "")
    assert err.startswith("onenet-bench: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


ENTRY = 'net = "onenet_e_4"\nresolution = 256\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[net]\n", ("readable TOML", "line 1")),
        (f"net = {'9' * 5000}", ("readable TOML", "integer string")),
        (f"net = {'[' * 3000}", ("readable TOML", "recursion")),
        ("[[net]]\nnet = 'onenet_e_4'\nresolution = 65552\n", ("at most 65536 pixels, but got 65552",)),
        ("", ("at least one [[net]]",)),
        ("net = 3\n", ("at least one [[net]]",)),
        ("net = [3]\n", ("net 1", "table", "3")),
        ("limit = 3\n[[net]]\n" + ENTRY, ("'limit'",)),
        ("[[net]]\nresolution = 256\n", ("'net'", "None")),
        ('[[net]]\nnet = "onenet_e_4"\n', ("'resolution'", "None")),
        ('[[net]]\nnet = "onenet_e_4"\nresolution = "256"\n', ("'resolution'", "'256'")),
        ('[[net]]\nnet = "onenet_e_4"\nresolution = true\n', ("'resolution'", "True")),
        ('[[net]]\nnet = "onenet_e_4"\nresolution = 0\n', ("'resolution'", "at least 1")),
        ('[[net]]\nnet = "onenet_e_4"\nresolution = [3, 256, 256]\n', ("'resolution'", "[3, 256, 256]")),
        ('[[net]]\nnet = "onenet_e_4"\nresolution = 250\n', ("onenet_e_4 @ 250x250", "multiple of 16", "256")),
        ("[[net]]\nresolutoin = 256\n" + ENTRY, ("unknown key 'resolutoin'", "resolution")),
        ("[[net]]\ninput = [3, 256, 256]\n" + ENTRY, ("'input'", "of a module", "leave it out")),
        ("[[net]]\nargs = { width = 3 }\n" + ENTRY, ("'args'", "of a module", "leave it out")),
        ('[[net]]\nnet = "a.b:c"\nresolution = 256\n', ("'resolution'", "of a net", "leave it out")),
        ('[[net]]\nnet = "a.b:c"\ninput = []\n', ("'input'", "[]")),
        ('[[net]]\nnet = "a.b:c"\ninput = 256\n', ("'input'", "256")),
        ('[[net]]\nnet = "a.b:c"\nargs = 3\ninput = [1]\n', ("'args'", "3")),
        ("[[net]]\nbudget = 'macs <= 2G'\n" + ENTRY, ("'budget'", "list")),
        ("[[net]]\nbudget = ['macs < 2G']\n" + ENTRY, ("COST <= NUMBER", "'macs < 2G'")),
        ("[[net]]\nbudget = ['flops <= 2G']\n" + ENTRY, ("unknown cost 'flops'", "macs")),
        ("[[net]]\nbudget = ['macs <= 1e999']\n" + ENTRY, ("finite", "macs")),
        ("[[net]]\nbudget = ['latency_ms <= 5']\n" + ENTRY, ("latency_ms", "cannot", "peak_inference_mib")),
        (f"[[net]]\n{ENTRY}[[net]]\n{ENTRY}", ("net 2", "twice")),
        ('[[net]]\nnet = "resnet1000"\nresolution = 256\n', ("unknown net 'resnet1000'", "onenet_e_4")),
        ('[[net]]\nnet = "none.toml"\nresolution = 256\n', ("none.toml", "No such file")),
        ('[[net]]\nnet = "a\\u0000.toml"\nresolution = 256\n', ("must be readable TOML", "null byte")),
    ],
)
def test_a_bad_budgets_file_is_one_sentence(tmp_path: Path, run: Any, text: str, words: tuple[str, ...]) -> None:
    path = tmp_path / "budgets.toml"
    path.write_text(text)
    for flags in ((), ("--update",)):
        one_sentence(run(path, *flags), "budgets.toml", *words)
    assert not budget.lock_path(path).exists()


def test_a_missing_budgets_file_format_or_folder_is_one_sentence(project: Path, tmp_path: Path, run: Any) -> None:
    one_sentence(run(tmp_path / "none.toml"), "none.toml", "No such file")
    one_sentence(run(tmp_path / "budgets.lock"), "ends in .toml")
    old = budget.lock_path(project).read_bytes()
    edit(project.parent / "edge.toml", "channels = 16", "channels = 12")
    one_sentence(run(project, "--format", "html", "--update"), "unknown format 'html'", "junit")
    assert budget.lock_path(project).read_bytes() == old
    one_sentence(run(project, "--out", tmp_path / "no" / "where"), "--out", "No such file")
    before = project.read_bytes()
    for mine in (project, budget.lock_path(project), project.parent / "edge.toml"):
        one_sentence(run(project, "--out", mine), "--out must not replace budgets, a lock or a spec", mine.name)
    assert (project.read_bytes(), budget.lock_path(project).read_bytes()) == (before, old)


def test_files_may_begin_with_a_byte_order_mark(project: Path) -> None:
    for path in (project, budget.lock_path(project)):
        path.write_text(path.read_text(), encoding="utf-8-sig")
    assert checking.check(project).passed


# Modules of other projects ------------------------------------------------------------------------------

NET = """
class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.twice = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU())
        self.bare = nn.Parameter(torch.zeros(5))
        self.filter = nn.Parameter(torch.zeros(2, width, 1, 1))
    def forward(self, x):
        assert not self.training and not torch.is_grad_enabled()
        x = self.twice(self.twice(self.first(x)))
        return nn.functional.conv2d(x, self.filter)
"""


def test_a_module_is_counted_layer_by_layer(module: Any, run: Any) -> None:
    path = module(NET, function="Net")
    facts = checking.check(path, update=True)
    (layers,) = budget.read_lock(budget.lock_path(path)).values()
    assert layers == {  # by hand: out x in x kernel (+ bias), times 16 x 16 positions
        "(root)": Layer(5 + 2 * 4, 2 * 4 * 256),
        "first": Layer(4 * 3 * 9 + 4, 4 * 3 * 9 * 256),
        "twice.0": Layer(4 * 4 + 4, 2 * 4 * 4 * 256),  # runs twice
    }
    assert facts.uncounted == {}
    assert run(path)[0] == 0
    edit(path, "input", "args = { width = 6 }\ninput")
    code, out, _ = run(path)
    assert code == 1
    assert "(width=6) @ 3x16x16\n  UNLOCKED" in out


def test_a_regression_in_a_module_names_its_layers(
    module: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = module(NET, function="Net")
    run(path, "--update")
    (source,) = tmp_path.glob("held_*.py")
    assert not list(tmp_path.glob("**/*.pyc"))  # which a change within the same second would leave valid
    edit(source, "width=4", "width=6")
    words = [sys.executable, "-m", "onenet_bench", "check", str(path)]  # a fresh process imports the changed file
    done = subprocess.run(words, capture_output=True, text=True, cwd="/", check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"first: macs {4 * 3 * 9 * 256:,} -> {6 * 3 * 9 * 256:,} (+50 %)" in done.stdout


@pytest.mark.parametrize("name", ["onenet_e_4", "onenet_ed_4_spatial", "unet_4", "resnet34_unet"])
def test_the_two_ways_of_counting_agree(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan's rows against torch's counter over the built module: every layer's parameters and MACs."""
    path = tmp_path / "budgets.toml"
    path.write_text(
        f'[[net]]\nnet = "{name}"\nresolution = 64\n[[net]]\nnet = "onenet_bench.models:build"\ninput = [3, 64, 64]\n'
    )
    planned, built = budget.read_budgets(path)
    built = replace(built, args={"spec": zoo.get(name)})
    one, other = checking.count(planned, tmp_path), checking.count(built, tmp_path)
    assert dict(one.layers) == dict(other.layers)
    assert len(one.layers) > 30
    assert other.costs == {"parameters": one.costs["parameters"], "macs": one.costs["macs"]}
    assert other.uncounted == ()


STUBBORN = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rates = [r.item() for r in torch.linspace(0, 1, 3)]  # no meta tensor has an item
        self.rnn = nn.LSTM(16, 8, batch_first=True)
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    def forward(self, x):
        x = self.attention(self.rnn(x[:, 0])[0])
        return x{more}
"""


@pytest.mark.parametrize("more", ["", " if x.sum().item() > -1e9 else None"], ids=["built", "run"])
def test_what_meta_tensors_cannot_do_is_done_on_the_cpu_with_equal_counts(module: Any, more: str) -> None:
    path = module(STUBBORN.replace("{more}", more), function="Net")
    facts = checking.check(path, update=True)
    (layers,) = budget.read_lock(budget.lock_path(path)).values()
    steps, inner = 16, 8
    assert layers["rnn"].macs == steps * 4 * inner * (16 + inner)
    products = 2 * steps * steps * inner  # queries by keys, weights by values
    assert layers["attention.self_attn"].macs + layers["attention.self_attn.out_proj"].macs in (
        steps * inner * (3 + 1) * inner + products,
    )
    assert facts.uncounted == {}


KEPT = """
import functools
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 3, 1)
        self.a.bias.requires_grad_(False)
        self.register_buffer("scale", torch.ones(3, 1, 1))
    def forward(self, x):
        return self.a(x) * self.scale if x.sum().item() > -1e9 else x  # no meta tensor has an item
NET = Net()
def make(): return NET
@functools.cache
def cached(): return Net()
"""


def test_a_module_that_is_kept_stays_as_it_was_and_is_counted_on_the_cpu(module: Any) -> None:
    path = module(KEPT)
    checking.check(path, update=True)
    (layers,) = budget.read_lock(budget.lock_path(path)).values()
    assert layers == {"a": Layer(12, 9 * 256)}
    (held,) = [m for name, m in sys.modules.items() if name.startswith("held_") and hasattr(m, "NET")]
    assert {name: (t.device.type, t.requires_grad) for name, t in held.NET.named_parameters()} == {
        "a.weight": ("cpu", True), "a.bias": ("cpu", False),
    }  # fmt: skip


def test_a_cached_module_that_meta_tensors_cannot_run_is_said(module: Any, run: Any) -> None:
    path = module(KEPT, function="cached")
    one_sentence(
        run(path, "--update"), "raised RuntimeError: Tensor.item() cannot be called on meta tensors; return a new"
    )


def test_lazy_tied_failing_and_instance_attribute_modules(module: Any) -> None:
    path = module(
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lazy = nn.LazyConv2d(5, 1)
        self.a = nn.Conv2d(5, 5, 1, bias=False)
        self.b = nn.Conv2d(5, 5, 1, bias=False)
        self.b.weight = self.a.weight
        self.odd = Odd()
    def forward(self, x):
        x = self.b(self.a(self.lazy(x)))
        x = x @ torch.zeros(16, 16)
        try:
            self.odd(x)
        except ValueError:
            return self.a(x)
class Odd(nn.Module):
    def forward(self, x):
        raise ValueError
class Makers:
    net = Net
""",
        function="Makers.net",
    )
    checking.check(path, update=True)
    (layers,) = budget.read_lock(budget.lock_path(path)).values()
    assert layers == {
        "(root)": Layer(0, 5 * 16**3),
        "lazy": Layer(20, 15 * 256),
        "a": Layer(25, 2 * 25 * 256),
        "b": Layer(0, 25 * 256),
    }


def test_what_a_copy_of_a_submodule_computes_is_counted_to_the_module_around_it(module: Any) -> None:
    path = module(
        """
import copy
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        self.b = nn.Conv2d(4, 3, 1)
    def forward(self, x):
        return self.b(copy.deepcopy(self.a)(x))
""",
        function="Net",
    )
    checking.check(path, update=True)
    (layers,) = budget.read_lock(budget.lock_path(path)).values()
    assert layers == {"(root)": Layer(0, 12 * 256), "a.0": Layer(16, 0), "b": Layer(15, 12 * 256)}


def test_a_compiled_module_is_counted_without_compiling_it(module: Any) -> None:
    path = module("def make(): return torch.compile(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))")
    checking.check(path, update=True)
    (layers,) = budget.read_lock(budget.lock_path(path)).values()
    assert layers == {"_orig_mod.0": Layer(16, 12 * 256)}


@pytest.mark.parametrize(
    ("made", "owner"), [("script(inner)", "(root)"), ("trace(inner, torch.zeros(1, 4, 16, 16))", "1")]
)
def test_the_macs_of_a_scripted_module_are_its_parents(module: Any, made: str, owner: str) -> None:
    path = module(
        "def make():\n    inner = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU())\n"
        f"    return nn.Sequential(nn.Conv2d(3, 4, 1), torch.jit.{made})"
    )
    checking.check(path, update=True)
    (layers,) = budget.read_lock(budget.lock_path(path)).values()
    assert layers == {"0": Layer(16, 12 * 256), owner: Layer(0, 8 * 36 * 14**2), "1.0": Layer(296, 0)}


def test_a_module_that_is_scripted_whole_is_counted(module: Any) -> None:
    path = module("def make(): return torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))")
    checking.check(path, update=True)
    (layers,) = budget.read_lock(budget.lock_path(path)).values()
    assert layers == {"(root)": Layer(0, 12 * 256), "0": Layer(16, 0)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("made", ["{}", "torch.jit.script({})", "torch.jit.trace({}, torch.zeros(1, 16, 16))"])
def test_the_weights_of_a_quantised_module_are_its_parameters(module: Any, run: Any, made: str) -> None:
    quantised = "torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear, nn.LSTM}, torch.qint8)"
    path = module(
        f"""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(16, 4, batch_first=True)
        self.out = nn.Linear(4, 8)
    def forward(self, x):
        return self.out(self.rnn(x)[0])
def make():
    return {made.format(quantised)}
""",
        "budget = ['parameters <= 391']",
    )
    edit(path, "[3, 16, 16]", "[16, 16]")
    code, out, _ = run(path, "--update")
    assert (code, "OVER      parameters          392 > 391" in out) == (1, True)
    (layers,) = budget.read_lock(budget.lock_path(path)).values()
    assert layers == {
        "rnn._all_weight_values.0": Layer(4 * 4 * (16 + 4 + 2), 0),
        "out._packed_params": Layer(4 * 8 + 8, 0),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("made", "words"),
    [
        ("torch.jit.freeze(torch.jit.script(net.eval()))", ("of 1 are constants", "before it is frozen")),
        ("Held(net)", ("of 1 in held cannot be seen", "nnapi")),
    ],
)
def test_weights_that_cannot_be_seen_are_one_sentence(module: Any, run: Any, made: str, words: tuple[str, ...]) -> None:
    path = module(f"""
class Held(nn.Sequential):
    def __init__(self, net):
        super().__init__(net)
        self.held = torch.classes._nnapi.Compilation()
def make():
    net = nn.Conv2d(3, 3, 1)
    return nn.Sequential(nn.ReLU(), {made})
""")
    one_sentence(run(path, "--update"), "parameters are counted, but those", *words)


COND = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 3, 1)
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: self.a(self.a(x)), lambda x: self.a(x).clone(), (self.a(x),))
"""


def test_both_branches_of_a_condition_are_counted(module: Any) -> None:
    path = module(COND, function="Net")
    checking.check(path, update=True)
    (layers,) = budget.read_lock(budget.lock_path(path)).values()
    assert layers == {"a": Layer(12, (1 + 2 + 1) * 9 * 256)}


def test_what_could_not_be_counted_is_said(module: Any, run: Any) -> None:
    path = module(
        """
class Net(nn.Module):
    def forward(self, x):
        return torch.fft.rfft2(x) @ torch.zeros(9, dtype=torch.complex64)
""",
        function="Net",
    )
    code, out, _ = run(path, "--update")
    assert code == 0
    assert re.search(r"macs leave out: aten::_fft_r2c, aten::mv$", out, re.MULTILINE)
    assert set(json.loads(run(path, "--format", "json")[1])["uncounted"].popitem()[1]) == {"aten::_fft_r2c", "aten::mv"}
    assert "`aten::mv`" in run(path, "--format", "markdown")[1]
    cases = ElementTree.fromstring(run(path, "--format", "junit")[1].strip()).iter("testcase")
    assert {case.get("name"): case.findtext("system-out") for case in cases} == {
        "parameters as locked": None,
        "macs as locked": "macs leave out: aten::_fft_r2c, aten::mv",
    }


@pytest.mark.parametrize(
    ("computed", "operator"),
    [
        ("torch.conv_tbc(x[0], torch.zeros(3, 16, 5), torch.zeros(5))", "conv_tbc"),
        ("torch.sparse.mm(torch.eye(16).to_sparse(), x[0, 0])", "_sparse_addmm"),
        ("torch.cholesky_solve(x[0, 0], torch.eye(16))", "cholesky_solve"),
        ("torch._int_mm(x[0].flatten(0, 1).to(torch.int8), torch.zeros(16, 8, dtype=torch.int8))", "_int_mm"),
        ("nn.functional.pdist(x[0, 0])", "_pdist_forward"),
    ],
)
def test_a_product_without_a_formula_is_said(module: Any, run: Any, computed: str, operator: str) -> None:
    path = module(f"class Net(nn.Module):\n    def forward(self, x):\n        return {computed}", function="Net")
    _, out, _ = run(path, "--update")
    assert f"macs leave out: aten::{operator}\n" in out


def test_every_operator_of_torch_that_is_named_like_a_product_is_counted_or_said() -> None:
    import torch
    from torch.utils.flop_counter import flop_registry

    from onenet_bench.measure.modules import NO_PRODUCTS, PRODUCTS

    like = re.compile(
        "mm|mv|mat|dot|dist|conv|linear|product|rnn|gru|lstm|attention|transformer|solve|chol|qr|linalg|fft"
    )
    harmless = re.compile(
        "gamma|sqrt|cumm(ax|in)|hamming|fftfreq"  # of one number at a time
        "|upsample"  # interpolates
        "|convert|reorder|flatten|dummy|materialize"  # lay tensors out
        "|check_errors"
    )
    said = {}
    for operator in torch._C._dispatch_get_all_op_names():
        space, _, name = operator.partition(".")[0].partition("::")
        if space != "aten" or not like.search(name) or getattr(torch.ops.aten, name) in flop_registry:
            continue
        if not torch._C._dispatch_has_kernel_for_dispatch_key(operator, "CompositeImplicitAutograd"):  # taken apart
            said[name] = PRODUCTS.search(name) is not None and not NO_PRODUCTS.search(name)
    assert len(said) > 150
    assert sorted(name for name in said if said[name] is bool(harmless.search(name))) == []


@pytest.mark.parametrize(
    ("source", "entry", "words"),
    [
        ("import no_such_package_anywhere\ndef make(): ...", "", ("must be importable", "no_such_package_anywhere")),
        ("raise RuntimeError('two\\nlines')", "", ("must be importable", "RuntimeError: two lines")),
        ("import sys\nsys.exit(3)", "", ("must be importable", "SystemExit: 3")),
        ("def make(:", "", ("must be importable", "SyntaxError")),
        ("def other(): ...", "", ("has no 'make'",)),
        ("make = 3", "", ("must be a function", "int")),
        ("make = nn.Conv2d(3, 3, 1)", "", ("must be a function", "Conv2d")),
        ("def make(): raise ValueError('no\\nweights')", "", ("calling it raised ValueError: no weights",)),
        ("def make(): raise ValueError", "", ("calling it raised ValueError",)),
        ("def make(): raise SystemExit(1)", "", ("calling it raised SystemExit: 1",)),
        ("def make(width): ...", "", ("calling it raised TypeError", "'width'")),
        ("def make(): return nn.Conv2d(3, 3, 1)", "args = { width = 3 }", ("calling it raised TypeError", "'width'")),
        ("def make(): return 3", "", ("must return an nn.Module", "int")),
        ("def make(): return nn.Conv2d(4, 3, 1)", "", ("running its module on an input of 1x3x16x16", "channels")),
        ("def make(): return nn.Conv2d(3, 3, 1)", "budget = ['peak_inference_mib <= 64']",
         ("peak_inference_mib of a module cannot", "parameters, macs", "spec.toml")),
    ],
)  # fmt: skip
def test_a_module_that_cannot_be_counted_is_one_sentence(
    module: Any, run: Any, source: str, entry: str, words: tuple[str, ...]
) -> None:
    path = module(source, entry)
    one_sentence(run(path, "--update"), "budgets.toml, held_", *words)
    assert not budget.lock_path(path).exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "computed",
    [
        "flex_attention(x, x, x)",
        "scan(lambda c, y: (self.a(c) + y, self.a(y)), x[0, 0], x[0])[1]",
        "while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, self.a(y)), (torch.tensor(0), x))",
        "self.a(torch.nested.nested_tensor([x[0, 0], x[0, 1, :4]], layout=torch.jagged))",
    ],
    ids=["flex_attention", "scan", "while_loop", "nested"],
)
def test_operators_that_run_only_uncounted_are_one_sentence(module: Any, run: Any, computed: str) -> None:
    path = module(
        f"""
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.nn.attention.flex_attention import flex_attention
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 16)
    def forward(self, x):
        return {computed}
""",
        function="Net",
    )
    one_sentence(run(path), "not supported by the counting: count a net that has plain operators in their place")


def test_a_module_that_does_not_exist_is_one_sentence(tmp_path: Path, run: Any) -> None:
    path = tmp_path / "budgets.toml"
    path.write_text('[[net]]\nnet = "no_such.package:make"\ninput = [3, 8, 8]\n')
    one_sentence(run(path), "must be importable", "No module named 'no_such'")


@pytest.mark.parametrize("net", ["zoo1:", ":make", ":", "zoo1:make.", ".zoo1:make"])
def test_a_net_without_a_module_or_a_function_is_one_sentence(tmp_path: Path, run: Any, net: str) -> None:
    path = tmp_path / "budgets.toml"
    path.write_text(f'[[net]]\nnet = "{net}"\ninput = [3, 8, 8]\n')
    (tmp_path / "zoo1.py").touch()
    one_sentence(
        run(path), f"of the zoo, the path of a spec.toml, or package.module:function, but got {net!r}\n", "'net' is"
    )


@pytest.mark.parametrize(("name", "file"), [("numbers", "numbers.py"), ("sys", "sys.py"), ("json", "json/__init__.py")])
def test_a_module_whose_name_is_taken_is_one_sentence(tmp_path: Path, run: Any, name: str, file: str) -> None:
    path = tmp_path / "budgets.toml"
    path.write_text(f'[[net]]\nnet = "{name}:make"\ninput = [3, 8, 8]\n')
    one_sentence(run(path), f"{name} must hold make")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("from torch import nn\ndef make(): return nn.Conv2d(3, 3, 1)")
    one_sentence(run(path), f"but {name} is loaded already (", f"in place of {tmp_path / file}; give that another name")


def test_foreign_code_leaves_the_output_and_the_path_alone(module: Any, run: Any) -> None:
    path = module("print('loading')\ndef make():\n    print('building')\n    return nn.Conv2d(3, 3, 1)")
    before = list(sys.path)
    code, out, err = run(path, "--format", "json")
    assert code == 1
    assert json.loads(out)["passed"] is False
    assert err == "loading\nbuilding\n"  # once: meta tensors were enough
    assert sys.path == before


def test_foreign_code_that_changes_the_folder_leaves_the_files_where_they_are_asked_for(
    module: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = module("import os\nos.chdir(os.path.dirname(__file__))\ndef make(): return nn.Conv2d(3, 3, 1)")
    (tmp_path / tmp_path.name).mkdir()
    monkeypatch.chdir(tmp_path.parent)
    assert run(Path(tmp_path.name) / path.name, "--update", "--out", f"{tmp_path.name}.txt")[0] == 0
    assert (tmp_path / "budgets.lock").exists()
    assert tmp_path.with_suffix(".txt").exists()
    assert not list(tmp_path.glob("*/*"))


# Renderers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [False, True])
def test_every_format_tells_the_same_facts(project: Path, run: Any, tmp_path: Path, broken: bool) -> None:
    if broken:
        edit(project.parent / "edge.toml", "channels = 16", "channels = 24")
    facts = checking.check(project)
    assert facts.passed is not broken
    rendered = {form: run(project, "--format", form) for form in checking.RENDERERS}
    assert {code for code, _, _ in rendered.values()} == {int(broken)}
    layer = "encoder.1.channel_1.conv: macs 1,179,648 -> 1,769,472 (+50 %)"

    suite = ElementTree.fromstring(rendered["junit"][1].strip()).find("testsuite")
    assert suite is not None
    cases = suite.findall("testcase")
    assert [(c.get("classname"), c.get("name")) for c in cases] == [
        ("edge.toml @ 64x64", name)
        for name in ("parameters as locked", "macs as locked", "parameters <= 20,000", "peak_inference_mib <= 64")
    ]
    failures = [case.find("failure") for case in cases]
    assert [failure is not None for failure in failures] == [broken, broken, False, False]
    assert (suite.get("tests"), suite.get("failures")) == ("4", "2" if broken else "0")
    if failures[1] is not None:
        assert layer in (failures[1].text or "")

    told = json.loads(rendered["json"][1])
    assert told["passed"] is not broken
    assert [f["verdict"] for f in told["findings"]] == [str(f.verdict) for f in facts.findings]
    macs = told["findings"][1]
    assert [(c["layer"], c["before"], c["after"]) for c in macs["changes"]] == [
        (c.layer, c.before, c.after) for c in facts.findings[1].changes
    ]

    markdown = rendered["markdown"][1]
    assert markdown.startswith(f"### {'❌' if broken else '✅'} onenet-bench check\n")
    assert markdown.count("| `edge.toml @ 64x64` |") == 4 + 2 * broken
    assert (f"- `{layer}`" in markdown) is broken

    assert (layer in rendered["table"][1]) is broken
    assert rendered["table"][1].endswith(checking.summary(facts) + "\n")

    out = tmp_path / "told.txt"
    for form, (code, text, _) in rendered.items():
        assert run(project, "--format", form, "--out", out) == (code, checking.summary(facts) + "\n", "")
        assert out.read_text(encoding="utf-8") == text


def test_markdown_survives_odd_names() -> None:
    name = "m:f(x='a|`b`') @ 1"
    found = budget.compare({name: budget.Counted(costs={}, layers={"a": Layer(1, 1)})}, {}, {})
    facts = checking.CheckFacts(budgets="budgets.toml", findings=found, uncounted={}, updated=False)
    rows = [line for line in checking.RENDERERS["markdown"](facts).splitlines() if "m:f" in line]
    assert rows[0] == "| `` m:f(x='a\\|`b`') @ 1 `` | parameters | none -> 1 | unlocked |"


def test_long_lists_of_layers_are_cut_in_tables_alone() -> None:
    layers = {f"layer{i}": Layer(i + 1, 0) for i in range(50)}
    found = budget.compare({"n": budget.Counted(costs={}, layers=layers)}, {}, {"n": {"layer0": Layer(1, 0)}})
    facts = checking.CheckFacts(budgets="budgets.toml", findings=found, uncounted={}, updated=False)
    shown = {form: render(facts) for form, render in checking.RENDERERS.items()}
    assert {form: sum(f"layer{i}: " in text for i in range(50)) for form, text in shown.items()} == {
        "table": 20, "markdown": 20, "junit": 49, "json": 0,
    }  # fmt: skip
    assert "… and 29 more layers" in shown["table"]
    assert len(json.loads(shown["json"])["findings"][0]["changes"]) == 49


# What ships ---------------------------------------------------------------------------------------------


def test_the_project_holds_its_own_nets(run: Any) -> None:
    held = {entry.net for entry in budget.read_budgets(ROOT / "budgets.toml")}
    assert held == set(zoo.NETS), "a net of the zoo is missing in budgets.toml, or gone from the zoo"
    code, out, _ = run(ROOT / "budgets.toml")
    assert code == 0, out


def test_specs_are_held_without_torch(project: Path) -> None:
    code = f"import sys, onenet_bench.checking as c, pathlib as p\nc.check(p.Path({str(project)!r}))\n"
    loaded = subprocess.run(
        [sys.executable, "-c", f"{code}print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    assert "onenet_bench.costs" in loaded.stdout.split()
    assert "torch" not in loaded.stdout.split()


def test_the_workflow_and_the_hook_run_the_check() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text())
    steps = workflow["jobs"]["check"]["steps"]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    (script,) = (step["run"].splitlines() for step in steps if step.get("name") == "Check")
    assert [line.split(" --")[0] for line in script] == ["onenet-bench check"] * 3
    assert "true" not in script[-1]  # the one that decides
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert (hook["id"], hook["entry"], hook["pass_filenames"]) == ("onenet-bench-check", "onenet-bench check", False)
    for path in ("budgets.toml", "budgets.lock", "onenet_bench/zoo.py"):
        assert re.search(hook["files"], path)


def test_the_documentation_says_what_is(tmp_path: Path, run: Any) -> None:
    text = (ROOT / "docs/check.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "budgets.toml"
    path.write_text(example)
    assert [entry.title for entry in budget.read_budgets(path)] == [
        "onenet_e_4 @ 256x256",
        "nets/edge.toml @ 192x256",
        "shop.models:segmenter(width=32) @ 3x256x256",
    ]
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) >= set(budget.KEYS)
    for verdict in Verdict:
        assert verdict is Verdict.OK or f"`{verdict}`" in text
    (tmp_path / "edge.toml").write_text(SPEC)
    path.write_text(CHECK)
    run(path, "--update")
    edit(tmp_path / "edge.toml", "channels = 16", "channels = 24")
    for line in re.findall(
        r"^  +\S.*$", text[text.index("For an encoder level") : text.index("## Modules")], re.MULTILINE
    ):
        assert line in run(path)[1]
