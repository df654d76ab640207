"""What mkdocs does beside building docs/: see mkdocs.yml.

The README is the site's first page; CONTRIBUTING, CHANGELOG, SECURITY and the examples are pages too. HTML comments,
which hold what only tests/test_docs.py reads, are left out. No page may load anything from another host.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {  # beside docs/: where the site has them
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "examples": "examples.md",
}
LINK = re.compile(rf"(?<=\]\()(?:(?:\.\./)?(?P<page>{'|'.join(map(re.escape, PAGES))})(?=[)#])|docs/)")
COMMENT = re.compile(r"^<!--.*?-->\n", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie beside docs/."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text() if name.endswith(".md") else examples()
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Leave comments out, and turn links to files of the repository into links to pages."""
    return LINK.sub(lambda link: PAGES.get(link["page"], ""), COMMENT.sub("", markdown))


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that would fetch anything from elsewhere."""
    for path in sorted(Path(config.site_dir).rglob("*.html")):
        if found := loaded(path.read_text()):
            raise PluginError(f"{path} loads {found}; a page may load only what is in the site")


def examples() -> str:
    """Return a page of all examples: each file under its name."""
    parts = [
        f"## {path.name}\n\n```python\n{path.read_text()}```\n" for path in sorted(ROOT.glob("examples/*.py"))
    ]
    return "\n".join(["# Examples\n", *parts])


def loaded(html: str) -> list[str]:
    """Return the addresses on other hosts from which a page loads something; links to click do not count."""
    loads = _Loads()
    loads.feed(html)
    return loads.found


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "a":
            given = (
                value or "" for key, value in attrs if key in {"src", "href", "srcset", "data", "poster"}
            )
            self.found += [address for address in given if re.match(r"([a-z]+:)?//", address)]
