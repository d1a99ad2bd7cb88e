"""Hooks of the documentation site: files above docs/ are pages too, under the same links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# What the pages link to outside docs/, by its path in the repository.
ABOVE = (
    *("EXPERIMENTS.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md"),
    *("CITATION.cff", "LICENSE"),
    *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("configs/**/*.yaml"))),
)


def on_files(files: Any, config: Any) -> Any:
    """Add the files above docs/ to the site."""
    for name in ABOVE:
        text = (ROOT / name).read_text(encoding="utf-8")
        # In the repository they link to docs/…, which is the root of the site.
        if name.endswith(".md"):
            up = "../" * name.count("/")
            text = re.sub(r"\]\((?:\.\./)*docs/", f"]({up}", text)
            text = text.replace("](README.md)", f"]({up}index.md)")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead links of docs/ to the files above it."""
    if page.file.src_uri in ABOVE:
        return markdown
    return markdown.replace("](../", "](")
