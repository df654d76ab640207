"""Kill and resume small training runs for some minutes, and compare each with one that nobody disturbed.

python scripts/soak.py --minutes 20

Runs of several kinds (storages, optimizers, tickets) get SIGKILL, SIGTERM, SIGHUP or SIGINT at random moments, some of
them twice, some while a second process asks for their folder; then they are resumed. What they come to must be that of
the undisturbed run bit for bit: all networks, all logs but for the times in them, optimizer and generators. Prints
counts; the exit code is 1, and the folder is kept, if anything differs.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.insert(0, str(TESTS))
from tiny import ENVIRONMENT, write_recipe  # noqa: E402  (data of the tests, which needs no network)

OWN = str(TESTS / "own_parts.py")
COMMON = ["steps=600", "checkpoint_every=10", "log_every=7", "evaluate_every=60", "method.update_every=25"]
KINDS = {
    "masked": [],
    "compressed": ["sparsify.storage=compressed"],
    "snfs": ["method.name=snfs"],
    "norm, dropout, AdamW": ["model=own_parts:network", "optimizer={name: AdamW, lr: 1e-3}", "--import", OWN],
    "best of validation": ["keep=best", "validation=0.2", "method.name=set"],
    "sup": ["tickets={name: sup, share: 0.5, cycle_steps: 60}"],
    "edst": ["tickets={name: edst, start: 0.5, tickets: 3}", "validation=0.2"],
    "dst": ["tickets={name: dst, tickets: 2}", "steps=300"],
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
MOST = 12
"""Signals that one run gets, so that it ends."""
LIMIT = 300
"""Seconds after which a process that was asked to stop, or left alone, hangs."""


class Wrong(Exception):
    """What must not be."""


class Soak:
    """Counts what was done, and does it.

    Args:
        folder: where the runs are.
        seed: of the moments and signals.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.recipe = write_recipe(folder)
        self.whole: dict[str, tuple[Path, float]] = {}

    def one(self, number: int) -> None:
        """Train with signals, and compare."""
        kind = self.random.choice(list(KINDS))
        whole, seconds = self.undisturbed(kind)
        run = self.folder / f"run-{number}"
        for _ in range(self.random.randint(1, MOST)):
            if (run / "summary.json").exists():
                break
            self.disturbed(kind, run, seconds)
        self.end(self.start(kind, run), "left alone", {0})  # draws at least what a signal has left half drawn
        compare(whole, run)
        self.counts["runs that are equal bit for bit"] += 1
        self.counts[f"  of kind {kind}"] += 1
        shutil.rmtree(run)

    def undisturbed(self, kind: str) -> tuple[Path, float]:
        """Train the run that the others must equal, and time it."""
        if kind not in self.whole:
            run, begin = self.folder / f"whole-{len(self.whole)}", time.monotonic()
            self.end(self.start(kind, run), "undisturbed", {0})
            self.whole[kind] = run, time.monotonic() - begin
        return self.whole[kind]

    def start(self, kind: str, run: Path) -> subprocess.Popen[str]:
        """Begin a run, or go on with it."""
        begun = (run / "config.yaml").exists()
        new = ["train", str(self.recipe), f"out={run}", *COMMON, *KINDS[kind]]
        command = [sys.executable, "-m", "regrow", *(["train", "--resume", str(run)] if begun else new)]
        return subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def disturbed(self, kind: str, run: Path, seconds: float) -> None:
        """Start or resume, and send a signal at a moment when it trains, as a rule."""
        process = self.start(kind, run)
        moment = time.monotonic() + seconds * self.random.random()
        if self.random.random() < 0.1:
            self.intrude(kind, run, process)
        while time.monotonic() < moment and process.poll() is None:
            time.sleep(0.005)
        chosen = self.random.choice(SIGNALS)
        process.send_signal(chosen)
        self.counts[f"{chosen.name} sent"] += 1
        if self.random.random() < 0.2:
            time.sleep(self.random.random() * 0.05)
            process.send_signal(chosen)
            self.counts[f"{chosen.name} sent again"] += 1
        # 130: asked in time; the signal itself: before or after the training; 0: it was finished
        said = self.end(process, chosen.name, {0, 130, -chosen})
        stopped = re.search(r"stopped at step ([\d,]+) of", said)
        if stopped and kind != "dst":
            at = torch.load(run / "checkpoint.pt")["status"]["step"]
            if at != int(stopped[1].replace(",", "")):
                raise Wrong(f"{run}: it says {stopped[0]}, and the checkpoint is of step {at}")
            self.counts["stopped with a checkpoint"] += 1

    def intrude(self, kind: str, run: Path, process: subprocess.Popen[str]) -> None:
        """Ask for the folder while another process has it."""
        deadline = time.monotonic() + LIMIT
        while holder(run) != process.pid and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        second = self.start(kind, run)
        said = self.end(second, "a second process", {0, 2})
        if second.returncode == 2:
            if f"is in use by process {process.pid} on" not in said and "holds a run already" not in said:
                raise Wrong(f"{run}: the second process says {said}")
            self.counts["second processes refused"] += 1

    def end(self, process: subprocess.Popen[str], why: str, codes: set[int]) -> str:
        """Wait for the end of a process; returns what it has said."""
        try:
            _, said = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise Wrong(f"{process.args} hangs ({why})") from None
        interrupted = why == "SIGINT" and "KeyboardInterrupt" in said  # while Python or torch was imported
        ending = why == "SIGINT" and process.returncode == -signal.SIGABRT and "state: finalizing" in said
        self.counts["aborted by Python while it ended"] += ending  # the run folder is compared all the same
        if process.returncode not in codes and not interrupted and not ending:
            raise Wrong(f"{process.args} ended with {process.returncode} ({why}):\n{said}")
        return said


def holder(run: Path) -> int:
    """Return the process that has signed the lock of a run folder last; 0 where there is none."""
    try:
        return int(json.loads((run / "lock").read_text())["pid"])
    except (OSError, ValueError):
        return 0


def compare(whole: Path, run: Path) -> None:
    """See that two finished runs are the same."""
    for pattern, read in (("*.safetensors", load_file), ("*.jsonl", records), ("checkpoint.pt", kept)):
        one, two = ({str(p.relative_to(f)): p for p in sorted(f.rglob(pattern))} for f in (whole, run))
        if one.keys() != two.keys():
            raise Wrong(f"{run} has {sorted(two)}, and {whole} {sorted(one)}")
        for name in one:
            if not same(read(one[name]), read(two[name])):
                raise Wrong(f"{two[name]} differs from {one[name]}")
    left = [path for path in run.rglob("*") if path.name == "lock" or path.name.endswith(".part")]
    if left or not (run / "environment.json").exists():
        raise Wrong(f"{run}: left are {left}, or there is no environment.json")


def records(path: Path) -> list[dict[str, object]]:
    """Return the records of a log but for the times, which no two runs share."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def kept(path: Path) -> list[object]:
    """Return what a checkpoint holds but for times."""
    state = torch.load(path)
    state["status"].pop("seconds")
    return [state[key] for key in ("model", "optimizer", "random", "losses", "status", "keeper")]


def same(one: object, two: object) -> bool:
    """Whether two values are the same to the last bit."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        if (one.dtype, one.shape) != (two.dtype, two.shape):
            return False
        return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (one, two)))
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and (one == two or (one != one and two != two))


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGHUP):  # else a background job's runs would ignore them
        signal.signal(number, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="regrow-soak-"))
    soak, begin, wrong = Soak(folder, arguments.seed), time.monotonic(), ""
    try:
        number = 0
        while time.monotonic() - begin < 60 * arguments.minutes:
            soak.one(number)
            number += 1
    except Wrong as error:
        wrong = str(error)
    print(f"seed {arguments.seed}, {(time.monotonic() - begin) / 60:.1f} minutes")
    for what, count in sorted(soak.counts.items(), key=lambda item: item[0].strip()):
        print(f"{count:6} {what}")
    if wrong:
        print(f"WRONG: {wrong}\nAll of it is in {folder}.")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
