"""A hook of mkdocs: pages beside docs/, and files outside of it that pages link to, become part of the site.

Links in pages are those of the repository, so that they work there too. Here they are rewritten to what the site has:
README.md is the home, other pages keep their names, and files (configs, code) are copied into `files/`.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

HOME = Path(__file__).resolve().parents[1]
BESIDE = {"README.md": "index.md", **{name: name for name in ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")}}
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")


def in_site(path: str) -> str:
    """Return where the site has a file of the repository."""
    if path in BESIDE:
        return BESIDE[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}"


def target(page: str, link: str) -> str:
    """Return the path in the repository that a page's link means."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def on_files(files: Files, config: Any) -> Files:
    """Add the pages beside docs/, and each file outside docs/ that a page links to."""
    pages = [*BESIDE, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    linked = {target(page, link) for page in pages for link in LINK.findall((HOME / page).read_text(encoding="utf-8"))}
    outside = {path for path in linked if not path.startswith("docs/") and (HOME / path).is_file()}
    for path in sorted(outside | {*BESIDE}):
        files.append(File.generated(config, in_site(path), abs_src_path=str(HOME / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite a page's links to files of the repository that exist; mkdocs reports the others."""
    uri = page.file.src_uri
    source = {value: key for key, value in BESIDE.items()}.get(uri, f"docs/{uri}")

    def moved(found: re.Match[str]) -> str:
        path = target(source, found[1])
        if not (HOME / path).is_file():
            return found[1]
        return posixpath.relpath(in_site(path), posixpath.dirname(uri) or os.curdir)

    return LINK.sub(moved, markdown)
