"""Kill a training run at random moments and cut its checkpoint at random bytes: ``python -m tests.stress [SEED]``.

A run of ``kfac-ref train`` is killed (kill -9) at 20 random moments of its life, the start of the process and the
writing of checkpoints included, and continued each time; at the end it must be the same in every bit and line as a
run that was never stopped. What a kill cost is the seconds spent in steps that were recorded and had to be taken again.
Then a checkpoint is cut at 200 random bytes: each time it is refused, and no file of the run changes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kfac_ref.experiments import run
from kfac_ref.experiments.settings import Settings

ROOT = Path(__file__).parents[1]
KILLS, CUTS, EVERY = 20, 200, 0.2
WHAT = ["--net", "64-16-64", "--batch", "growing:100:4000", "--set", "T3=5"]
HOW = ["--iterations", "6000", "--checkpoint-every", str(EVERY)]


def train(*arguments: object) -> subprocess.Popen[str]:
    """Begin ``kfac-ref train`` in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "kfac_ref", "train", *map(str, arguments)], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a run to end, and return what it printed."""
    printed, error = process.communicate()
    if process.returncode or error:
        raise RuntimeError(f"kfac-ref train ended with {process.returncode}: {error}")
    return printed


def recorded(folder: Path) -> dict[int, float]:
    """Return the seconds of each step in a history."""
    if not (folder / run.HISTORY).exists():
        return {}
    return {line["k"]: sum(line["seconds"].values()) for line in run.records(folder)}


def content(folder: Path) -> tuple[list[bytes], list[object]]:
    """Return what must be the same: the arrays of the checkpoint, and the history without its seconds."""
    with np.load(folder / "checkpoint.npz") as file:
        head = json.loads(file["header"].item()) | {"seconds": 0, "sha256": ""}
        arrays = [file[name].tobytes() for name in file.files if name != "header"]
    lines = [json.loads(line) | {"seconds": 0} for line in (folder / run.HISTORY).read_text().splitlines()]
    return arrays, [head, *lines]


def kill_at_random(folder: Path, rng: random.Random, progress: Callable[[str], None]) -> tuple[int, float, int]:
    """Kill a run again and again, then let it end; return how many kills struck, and the most seconds and steps lost.

    Parameters
    ----------
    folder : Path
        Of the run; is made.
    rng : random.Random
        Chooses the moments.
    progress : function of str
        Is called with a line for each kill.
    """
    struck, lost_seconds, lost_steps = 0, 0.0, 0
    begun = False
    for k in range(1, KILLS + 1):
        with train(*HOW, *(["--resume", folder] if begun else [*WHAT, "--out", folder])) as process:
            time.sleep(rng.uniform(0.3, 4))
            process.kill()
            _, error = process.communicate()
        struck += process.returncode == -signal.SIGKILL
        if process.returncode not in (0, -signal.SIGKILL) or error:
            raise RuntimeError(f"kfac-ref train ended with {process.returncode}: {error}")
        begun = begun or (folder / run.SETTINGS).exists()
        # The next start drops what was recorded after the checkpoint: that is what is lost.
        steps, kept = recorded(folder), 0
        if (folder / "checkpoint.npz").exists():
            with np.load(folder / "checkpoint.npz") as file:
                kept = json.loads(file["header"].item())["content"]["dict"]["state"]["dict"]["k"]
        again = [seconds for step, seconds in steps.items() if step > kept]
        lost_seconds, lost_steps = max(lost_seconds, sum(again)), max(lost_steps, len(again))
        progress(f"kill {k:2d}: at step {max(steps, default=0)}, checkpoint of step {kept}, "
                 f"{sum(again):.3f} s of steps to take again")
    finish(train(*HOW, "--resume", folder))
    return struck, lost_seconds, lost_steps


def cut_at_random(folder: Path, rng: random.Random) -> int:
    """Cut the checkpoint of a short run at random bytes, and return how often it was refused and nothing changed."""
    steps, refused = 12, 0
    run.start(Settings(net="64-3-64", batch="100", settings={"T3": 5}), folder, steps, None)
    path = folder / "checkpoint.npz"
    whole = path.read_bytes()
    for size in [0, 1, len(whole) - 1, *rng.sample(range(2, len(whole) - 1), CUTS - 3)]:
        path.write_bytes(whole[:size])
        before = {file: file.read_bytes() for file in folder.iterdir()}
        try:
            run.resume(folder, steps + 1, None)
        except ValueError as error:
            refused += str(error).startswith(f"{path} is damaged: ")
        refused -= before != {file: file.read_bytes() for file in folder.iterdir()}
    return refused


def main() -> int:
    """Run both, print what came of them, and return 1 if anything was not the same."""
    seed = int(sys.argv[1]) if sys.argv[1:] else random.randrange(10**6)
    rng = random.Random(seed)
    print(f"seed {seed}; {' '.join(WHAT + HOW)}")
    with tempfile.TemporaryDirectory() as name:
        whole, killed = Path(name) / "whole", Path(name) / "killed"
        finish(train(*HOW, *WHAT, "--out", whole))
        struck, seconds, steps = kill_at_random(killed, rng, print)
        same = content(killed) == content(whole)
        print(f"{struck} of {KILLS} kills struck a running process; in the end every bit and line is "
              f"{'the same' if same else 'NOT the same'} as without them; a kill cost at most {seconds:.2f} s of steps "
              f"({steps} steps), with checkpoints every {EVERY:g} s")
        good = cut_at_random(Path(name) / "short", rng)
        print(f"{good} of {CUTS} cuts were refused, and nothing changed")
    # A step and the writing of a checkpoint may come on top of the interval.
    return int(not same or good < CUTS or struck < KILLS // 2 or seconds > EVERY + 1)


if __name__ == "__main__":
    sys.exit(main())
