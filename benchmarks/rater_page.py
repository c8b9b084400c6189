"""How long the page of `flanx compare` takes to open, in a headless Chromium (chromium, chromium-driver, selenium).

    python benchmarks/rater_page.py [--pairs N]     # of 100 and of 600 words an answer; half a minute

One JSON object per page. `served` and `file`: seconds from asking for the page until its load event has ended, by when
it is ready for a name, the median over loads without a cache; `first_pair`: from the name until the first pair is
painted; `next_pair`: from a key until the next one is, the choice kept on disk. `bytes` of the page.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
from typing import Any

import record

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

LOADS = 5
WORDS = "time year people way day man thing woman life child world school state family student group country"
OPENED = "const t = performance.getEntriesByType('navigation')[0]; return (t.loadEventEnd - t.startTime) / 1000"
# Presses a key, and waits until another pair is shown and a frame has been painted.
PRESSED = """
const [key, done] = arguments, place = document.getElementById("place"), before = place.textContent;
const began = performance.now();
const look = () => place.textContent !== before
  ? requestAnimationFrame(() => requestAnimationFrame(() => done((performance.now() - began) / 1000)))
  : setTimeout(look, 0);
if (key) document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
else document.getElementById("begin").click();
look();
"""


def comparison(pairs: int, words: int) -> Any:
    """`pairs` pairs of two candidates whose answers have about `words` words."""
    import numpy as np

    from flanx.compare import pairing
    from flanx.compare.candidate import Answer, Candidate

    def text(*key: int) -> str:
        drawn, known = np.random.default_rng(key), WORDS.split()
        return " ".join(known[i] for i in drawn.integers(0, len(known), drawn.integers(words // 2, 3 * words // 2)))

    def candidate(number: int) -> Candidate:
        asked = {n: f"{n}: {text(0, n)[:300]}?" for n in range(pairs)}
        answers = {(prompt, 0): Answer(prompt, text(number, n)) for n, prompt in asked.items()}
        return Candidate(f"candidate {number}", "", answers)

    return pairing.make([candidate(1), candidate(2)])


def measure(pairs: int, words: int) -> dict[str, Any]:
    from flanx.compare import rater_page, site
    from flanx.web.server import Server
    from tests.browser_case import browser, until
    from tests.web_case import running

    made = comparison(pairs, words)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        page = rater_page.exported(made)
        (folder / "page.html").write_text(page, encoding="utf-8")
        with running(Server(site.routes(made, folder))) as server, browser() as driver:
            driver.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
            driver.get(server.link)
            found: dict[str, Any] = {"benchmark": "rater_page", "pairs": pairs, "words": words}
            found["bytes"] = len(page.encode())
            for kind, url in (("file", (folder / "page.html").as_uri()), ("served", server.url)):
                times = []
                for _ in range(LOADS):
                    driver.get(url)
                    until(driver, "performance.getEntriesByType('navigation')[0].loadEventEnd")
                    times.append(driver.execute_script(OPENED))
                found[kind] = round(statistics.median(times), 3)
            driver.execute_script("document.getElementById('name').value = 'Ada'")
            found["first_pair"] = round(driver.execute_async_script(PRESSED, ""), 3)
            steps = [driver.execute_async_script(PRESSED, "1") for _ in range(21)]
            found["next_pair"] = round(statistics.median(steps), 3)
            found["browser"] = driver.capabilities["browserVersion"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000)
    args = parser.parse_args()
    for words in (100, 600):
        record.write(measure(args.pairs, words))


if __name__ == "__main__":
    main()
