"""What the site adds to the pages: the READMEs as start pages, links between the languages, the page's language."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
STARTS = {"README.md": "index.md", "README.zh-CN.md": "zh/index.md"}  # in the repository -> in the site
_LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def start_page(readme: str) -> str:
    """A README as a page of the site: links to docs/ and to the other README are taken from where it now stands."""
    folder = posixpath.dirname(STARTS[readme]) or "."

    def moved(link: re.Match[str]) -> str:
        target = STARTS.get(link[1], link[1].removeprefix("docs/"))
        return f"]({posixpath.relpath(target, folder)}"

    return _LINK.sub(moved, (ROOT / readme).read_text(encoding="utf-8"))


def on_files(files: Files, config: Any) -> Files:
    for readme, page in STARTS.items():
        files.append(File.generated(config, page, content=start_page(readme)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """A link to the same page in the other language, where there is one."""
    here = page.file.src_uri
    if here in STARTS.values():
        return markdown  # the READMEs have one of their own
    there = here.removeprefix("zh/") if here.startswith("zh/") else f"zh/{here}"
    if files.get_file_from_path(there) is None:
        return markdown
    name = "English" if here.startswith("zh/") else "中文"
    return f"[{name}]({posixpath.relpath(there, posixpath.dirname(here) or '.')})\n\n{markdown}"


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Browsers choose fonts and line breaks by the page's language."""
    return output.replace('lang="en"', 'lang="zh-CN"', 1) if page.file.src_uri.startswith("zh/") else output
