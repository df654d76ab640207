import json
import subprocess
import sys
from pathlib import Path

from tiny import ENVIRONMENT, NEEDS_FASHION_MNIST

ESCAPE = Path(__file__).parents[1] / "examples" / "studies" / "escape.py"

pytestmark = NEEDS_FASHION_MNIST


def test_the_whole_experiment_in_small(tmp_path):
    command = [sys.executable, str(ESCAPE), "--seeds", "1", "--epochs", "2", "--curve-epochs", "1"]
    command += ["--limit", "4000", "--out", str(tmp_path)]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    document = json.loads((tmp_path / "escape.json").read_text())
    (seed,) = document["seeds"]
    assert document["ratios"] == [seed["RigL"]["loss"] / seed["Static"]["loss"]]
    assert len(seed["static"]["losses"]) == len(seed["RigL"]["losses"]) == 4  # of 80 steps, a mean every 20
    straight, quadratic, cubic, dense = (path["losses"] for path in seed["paths"].values())
    ends = [seed["pruned"]["loss"], seed["static"]["loss"]]
    for path in (straight, quadratic, cubic, dense):  # all lead from the same solution to the same solution
        assert [path[0][1], path[-1][1]] == [straight[0][1], straight[-1][1]]
        assert all(abs(path[i][1] - end) < 1e-4 for i, end in zip((0, -1), ends, strict=True))
    assert sum(loss for _, loss in dense) < sum(loss for _, loss in straight)
    assert "RigL's loss over Static's" in ended.stdout
    for name in ("escape.png", "escape.pdf"):
        assert (tmp_path / name).stat().st_size > 5000
    again = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert "since the start" in ended.stdout
    assert "since the start" not in again.stdout
