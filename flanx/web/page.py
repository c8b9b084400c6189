"""A self-contained HTML page: style, script and data are inline, and its policy allows no others.

    page("Compare", body, style=css, script=js, data={...})    # for a file, or for `flanx.web.server.page_response`

Text from models and people goes only into `data`, which the script reads with
`JSON.parse(document.getElementById("data").textContent)` and shows with `textContent`, so nothing in it becomes HTML or
a script. `base.css` comes first: light and dark colours, focus, buttons, whatever both pages share.
"""

import base64
import functools
import hashlib
import html
import json
import pathlib
from typing import Any

_ESCAPED = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}  # what could end the element, or a script line


@functools.cache
def base_style() -> str:
    """The style shared by the pages."""
    return pathlib.Path(__file__).with_name("base.css").read_text(encoding="utf-8")


def policy(style: str, script: str, connect: bool) -> str:
    """The content security policy of a page with these inline texts; `connect`: its script may query its own server."""
    allowed = "'self'" if connect else "'none'"
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; connect-src {allowed}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def data_element(data: Any, name: str = "data") -> str:
    """Data as an element from which no script or style can escape."""
    text = json.dumps(data, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8").translate(_ESCAPED)
    return f'<script type="application/json" id="{name}">{text}</script>'


def page(title: str, body: str, *, style: str = "", script: str, data: Any, connect: bool = True) -> str:
    """The page. `body`: HTML of ours; `connect`: whether its script talks to the server that it came from."""
    style = f"{base_style()}\n{style}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy(style, script, connect)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
{data_element(data)}
<script>{script}</script>
</body>
</html>
"""
