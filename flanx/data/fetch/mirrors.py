"""Mirrors of files: `tables/mirrors.toml` of a folder in FLANX_TABLES, tried in order after the URL itself.

["https://raw.githubusercontent.com/"]                 # any URL with this prefix
places = ["https://mirror.example.org/github/", "file:///mnt/github/"]
"""

import pathlib

from flanx.data.task import tables
from flanx.data.task.tables import toml_rows
from flanx.errors import UserError


def load() -> dict[str, list[str]]:
    """{URL prefix: replacements}, from all roots in order."""
    found: dict[str, list[str]] = {}
    for root in tables.roots():
        path = pathlib.Path(root) / "tables" / "mirrors.toml"
        for prefix, row, place in toml_rows(path) if path.is_file() else ():
            mirrors = row.get("places")
            if set(row) != {"places"} or not isinstance(mirrors, list) or not all(isinstance(m, str) for m in mirrors):
                raise UserError(f'{place}: a mirror is places = ["https://...", ...], under the beginning of a URL')
            found.setdefault(prefix, []).extend(mirrors)
    return found


def places(url: str) -> list[str]:
    """The URL, then its mirrors."""
    found = [mirror + url[len(prefix) :] for prefix, row in load().items() if url.startswith(prefix) for mirror in row]
    return list(dict.fromkeys([url, *found]))
