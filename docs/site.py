"""MkDocs hooks: the pages that live elsewhere in the repository, and one API page for each module of flanx."""

import pathlib
import re
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parent.parent
ELSEWHERE = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "launch.md": "launch/README.md",
}
PAGES = {source: page for page, source in ELSEWHERE.items()}


def on_config(config: Any) -> Any:
    """Lists the API pages in the navigation: one section for each package."""
    sections: dict[str, list[str]] = {}
    for module in _modules():
        parts = module.split(".")
        sections.setdefault(".".join(parts[:-1]) or parts[0], []).append(f"reference/{module}.md")
    config.nav[-1] = {"API": [{name: pages} for name, pages in sorted(sections.items())]}
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of ELSEWHERE and the API pages."""
    for page, source in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_relink(text, pathlib.PurePosixPath(source).parent)))
    for module in _modules():
        files.append(File.generated(config, f"reference/{module}.md", content=f"::: {module}\n"))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Leads links out of docs/ (`../launch/README.md`) to the pages made of those files."""
    if page.file.src_uri in ELSEWHERE or page.file.src_uri.startswith("reference/"):
        return markdown
    return _relink(markdown, pathlib.PurePosixPath("docs") / pathlib.PurePosixPath(page.file.src_uri).parent)


def _relink(text: str, folder: pathlib.PurePosixPath) -> str:
    """Links to files of the repository, relative to `folder` there, as links of the site, relative to its root."""
    depth = len(folder.relative_to("docs").parts) if folder.parts[:1] == ("docs",) else 0

    def lead(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        path = pathlib.PurePosixPath(*_normal(folder / target))
        if str(path) in PAGES:
            return f"]({'../' * depth}{PAGES[str(path)]}{anchor})"
        if path.parts[:1] == ("docs",):
            return f"]({'../' * depth}{pathlib.PurePosixPath(*path.parts[1:])}{anchor})"
        return match[0]

    return re.sub(r"\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)", lead, text)


def _normal(path: pathlib.PurePosixPath) -> list[str]:
    parts: list[str] = []
    for part in path.parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return parts


def _modules() -> list[str]:
    """The modules of flanx, dotted, but for empty package files and the programs' entry."""
    found = []
    for file in sorted((ROOT / "flanx").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        if "gin" in parts or parts[-1] == "__main__" or not file.read_text(encoding="utf-8").strip():
            continue
        found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found
