"""The soak: hundreds of tiny trials with injected faults, and a driver that is killed 30 times; ``make soak``.

Two runs of the local engine, each in a process that is killed at random moments and started again on the same folder:

- 300 trials by two workers, every fourth of them with a fault (``tests.search.faults``), 10 kills of the driver;
- 60 trials by one worker without faults, 30 kills, which must end with the Records of a run that was never interrupted.

The moments: after so many more bytes of the ledger, and so many milliseconds. Writes ``results/soak.md``.
"""

from __future__ import annotations

import json
import random
import shlex
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from onenet_bench import ledger
from onenet_bench.record import Machine, Record, provenance
from tests.search import faults
from tests.search.killable import carry_on, drive, kill, search
from tests.search.test_kills import rows, same

FAULTY, FAULTY_KILLS = 300, 10
PLAIN, PLAIN_KILLS = 60, 30
ROOT = Path(__file__).parents[1]


def plan() -> dict[int, str]:
    """Every fourth trial's fault, all kinds in turn."""
    names = list(faults.FAULTS)
    return {number: names[at % len(names)] for at, number in enumerate(range(3, 2 * FAULTY, 4))}


def killed(folder: Path, trials: int, workers: int, kills: int, step: int, seed: int) -> str:
    """Kill the driver so many times, then let it end. What the ledger ended with at each kill."""
    draw = random.Random(seed)
    moments = Counter(kill(folder, trials, workers, draw, step) for _ in range(kills))
    with drive(folder, trials, workers) as driver:
        _, said = driver.communicate()
        assert driver.returncode == 0, said
    return ", ".join(f"{what} {count}" for what, count in sorted(moments.items()))


def accounted(found: dict[int, Record], planned: dict[int, str]) -> list[tuple[str, str, int, int]]:
    """(fault, status, trials, those whose reason is another than the fault's) for every fault."""
    counts: Counter[tuple[str, str]] = Counter()
    strange: Counter[tuple[str, str]] = Counter()
    for number, record in found.items():
        row = planned.get(number, "none") if record.status != "rejected" else "none", str(record.status)
        counts[row] += 1
        expected = faults.FAULTS[row[0]][1] if row[0] != "none" else ""
        strange[row] += not record.reason.startswith(expected) if row[1] == "failed" else row[0] != "none"
    return [(*row, counts[row], strange[row]) for row in sorted(counts)]


def write(name: str, lines: list[str]) -> None:
    """A page of ``results/``, with what made it and where."""
    made = provenance()
    lines += [
        "", f"Commit {made['commit']}{' with local changes' if made['dirty'] else ''}; "
        + ", ".join(f"{name} {version}" for name, version in made["versions"].items()) + ".",
        "Machine: " + ", ".join(f"{name} {value}" for name, value in asdict(Machine.here()).items()) + ".",
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    print(text)
    (ROOT / "results" / name).write_text(text, encoding="utf-8")


def main() -> None:
    began = time.monotonic()
    lines = ["# The soak", "", f"`make soak`, which is `{shlex.join(['python', '-m', 'tests.soak'])}`", ""]
    with tempfile.TemporaryDirectory() as scratch:
        faulty, plain, whole = (Path(scratch, name) for name in ("faulty", "plain", "whole"))
        for folder in (faulty / "run", plain, whole):
            folder.mkdir(parents=True)
        (faulty / "run" / faults.PLAN).write_text(json.dumps(plan()), encoding="utf-8")
        moments = killed(faulty, FAULTY, 2, FAULTY_KILLS, step=200_000, seed=1)
        found = rows(faulty / "run")
        table = accounted(found, plan())
        trained = sum(count for _, status, count, _ in table if status != "rejected")
        lines += [
            f"## {trained} trials with faults, two workers, the driver killed {FAULTY_KILLS} times", "",
            "| fault | ended as | trials | with another reason |", "|---|---|---|---|",
            *(f"| {fault} | {status} | {count} | {strange} |" for fault, status, count, strange in table), "",
            f"Candidates asked for: {len(found)}; with exactly one Record: {len(found)}.",
            f"Last in the ledger at the kills: {moments}.", "",
        ]  # fmt: skip
        assert trained == FAULTY
        carry_on(whole / "run", search(PLAIN))
        moments = killed(plain, PLAIN, 1, PLAIN_KILLS, step=15_000, seed=2)
        same(plain / "run", whole / "run")
        events = ledger.read(plain / "run")
        reports = Counter((e["trial"], e["epoch"]) for e in events if e["event"] == "report")
        states = Counter(str(record.status) for record in rows(plain / "run").values())
        lines += [
            f"## {PLAIN} trials, one worker, the driver killed {PLAIN_KILLS} times", "",
            f"Records: {', '.join(f'{n} {what}' for what, n in states.items())}, one each. All are those of a run that "
            "was never interrupted, apart from times, and so are the weights, to the bit.",
            f"Epochs in the ledger: {len(reports)}; written twice: {sum(n > 1 for n in reports.values())}.",
            f"Last in the ledger at the kills: {moments}.", "",
        ]  # fmt: skip
    lines += [f"Took {time.monotonic() - began:.0f} s in all. Processes left after a kill: none."]
    write("soak.md", lines)


if __name__ == "__main__":
    main()
