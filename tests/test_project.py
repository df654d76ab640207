"""What the project says about itself in several files agrees: its version, its public names."""

import re
from pathlib import Path

import yaml

import regrow

ROOT = Path(__file__).parents[1]


def test_there_is_one_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == regrow.__version__
    newest = re.search(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == regrow.__version__
