import subprocess
import sys
from pathlib import Path

from tiny import ENVIRONMENT, NEEDS_FASHION_MNIST

DEMO = Path(__file__).parents[1] / "examples" / "studies" / "demo.py"

pytestmark = NEEDS_FASHION_MNIST


def demo(runs: Path, *keys: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEMO), "--runs", str(runs), "--seeds", "1", *keys]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def test_demo_compares_fails_where_nothing_is_to_be_seen_and_repeats_nothing(tmp_path):
    # in 30 steps there is no update, so RigL is Static: neither better nor looking at the centre
    keys = ("steps=30", "data.limit=3000")
    first = demo(tmp_path, *keys)
    assert "[5/5]" in first.stdout, first.stderr
    for level in ("98%", "99.5%"):
        for method in ("Static", "RigL"):
            assert any(line.split()[:3] == [level, method, "1"] for line in first.stdout.splitlines())
    assert any(line.split()[:3] == ["0%", "dense", "1"] for line in first.stdout.splitlines())
    assert "speed-up" in first.stdout
    assert first.returncode == 1
    assert "The demo did not show what it should:" in first.stderr
    assert "at 99.5% RigL's mean of" in first.stderr
    pictures = [line.strip() for line in first.stdout.splitlines() if line.endswith((".png", ".gif"))]
    assert len(pictures) == 4  # the map over training has but one frame, and is left out
    assert all(Path(path).is_file() for path in pictures)

    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("checkpoint.pt")}
    again = demo(tmp_path, *keys)
    assert again.stdout.count("was finished before") == 5
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("checkpoint.pt")} == written
    assert again.returncode == 1
