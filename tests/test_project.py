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


def test_the_reference_has_each_public_name_once() -> None:
    pages = "\n".join(page.read_text() for page in sorted((ROOT / "docs" / "api").glob("*.md")))
    told = re.findall(r"^::: regrow\.(\w+)$", pages, re.MULTILINE)
    assert sorted(told) == sorted([*regrow.__all__, "testing"])


def test_issue_forms_are_well_formed() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
    assert [form.stem for form in forms] == ["bug", "feature", "method"]
    for form in forms:
        content = yaml.safe_load(form.read_text())
        assert {"name", "description", "body"} <= content.keys()
        assert all(part["attributes"]["label"] for part in content["body"])
    assert "regrow doctor" in forms[0].read_text()
