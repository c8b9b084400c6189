"""A page holds what others wrote as data that nothing can come out of."""

import html.parser
import json
import re

from flanx.web import page

HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)> \u2028 ]]> & \udc80"


class Reader(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.data: dict[str, str] = {}
        self._inside = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._inside = tag + str(dict(attrs).get("type") or "")

    def handle_data(self, data):
        self.data[self._inside] = self.data.get(self._inside, "") + data


def test_what_others_wrote_stays_data():
    text = page.page(f"<b>{HOSTILE[:9]}", "<main></main>", script="let a = 1;", data={HOSTILE: [HOSTILE]})
    reader = Reader()
    reader.feed(text.encode("utf-8").decode())
    assert [tag for tag in reader.tags if tag not in ("meta", "link")] == [
        *("html", "head", "title", "style", "body", "main", "script", "script"),
    ]
    shown = HOSTILE.replace("\udc80", "?")
    assert json.loads(reader.data["scriptapplication/json"].strip()) == {shown: [shown]}
    assert reader.data["title"].strip() == "<b></script>"


def test_the_policy_allows_the_pages_own_script_and_no_request_but_to_its_server():
    text = page.page("a", "", style="b{}", script="let a = 1;", data=1, connect=False)
    policy = re.search(r'Security-Policy" content="([^"]+)"', text)[1]
    assert "default-src 'none'" in policy and "connect-src 'none'" in policy and "unsafe" not in policy
    assert page._hash("let a = 1;") in policy and "src=" not in text and "http://" not in text
    assert "connect-src 'self'" in page.page("a", "", script="", data=1)
