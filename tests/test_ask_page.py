"""The page of `flanx ask --serve` in a browser: by keyboard alone, wide and narrow, light and dark, hostile texts."""

import threading
import time

import pytest

from tests import ask_case, browser_case
from tests.ask_case import PROMPTS
from tests.browser_case import browser, press, shot, until
from tests.web_case import running

from flanx.ask import template  # isort: skip  (after web_case, which skips where the extra is absent)
from flanx.ask.engine import Answer, Engine, Piece
from flanx.ask.openai_api import Options
from flanx.ask.service import Service
from flanx.web.server import Server

pytestmark = pytest.mark.slow
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script></pre></script>&lt;b&gt; "
    "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd \x1b[31m **not bold** " + "unbroken" * 2500
)


@pytest.fixture(scope="module")
def engine():
    model = ask_case.model()
    with Engine(model.predictor, model.partitioner.scope, rows=4) as one:
        one.warm()
        yield one


@pytest.fixture
def server(engine):
    service = Service("drawn", template.load("qa"), Options())
    service.start(engine)
    with running(Server(service.routes)) as one:
        yield one


def answer_with(monkeypatch, text, pause=0.0):
    """What the engine says to everyone from now on, in two hundred pieces; and the answers that were cancelled."""
    cancelled = []

    def submit(self, request, deliver):
        answer = Answer(request, deliver, 0.0)

        def run():
            size = max(1, len(text) // 200)
            for start in range(0, len(text), size):
                time.sleep(pause)
                is_last = start + size >= len(text)
                answer.deliver(Piece(0, text[start : start + size], "stop" if is_last else None, start))
            if answer.is_over:
                cancelled.append(answer)

        threading.Thread(target=run).start()
        return answer

    monkeypatch.setattr(Engine, "submit", submit)
    return cancelled


def shifted(driver, key):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver).key_down("\ue008").send_keys(key).key_up("\ue008").perform()


TEXTS = "[...document.querySelectorAll('#log .text')].map((each) => each.textContent)"
DONE = "document.querySelectorAll('#log .foot').length === {}"


def test_a_conversation_by_keyboard_alone(server, monkeypatch):
    with browser() as driver:
        driver.get(server.link)
        until(driver, "document.activeElement.id === 'question'")
        assert "token" not in driver.current_url
        press(driver, PROMPTS[0], "\ue007")
        until(driver, DONE.format(1))
        press(driver, "b")
        shifted(driver, "\ue007")  # Enter: a line break
        press(driver, "c", "\ue007")
        until(driver, DONE.format(2))
        first = ask_case.answers()[PROMPTS[0]]
        assert driver.execute_script(f"return {TEXTS}")[:3] == [PROMPTS[0], first, "b\nc"]
        shifted(driver, "\ue004")  # Tab: back to the buttons of the last answer
        assert driver.execute_script("return document.activeElement.textContent") == "Prompt"
        press(driver, "\ue007")
        shown = until(driver, "document.querySelector('.prompt')?.textContent")
        assert shown.endswith(f"tokens\n\nQ: {PROMPTS[0]}\nA: {first}\n\nQ: b\nc\nA:")
        cancelled = answer_with(monkeypatch, "x" * 2000, pause=0.02)
        driver.execute_script("document.getElementById('question').focus()")
        press(driver, "d", "\ue007")
        until(driver, f"{TEXTS}.at(-1).length > 10")
        press(driver, "\ue00c")  # Escape
        until(driver, DONE.format(3))
        assert "stopped" in driver.execute_script("return [...document.querySelectorAll('.foot')].at(-1).textContent")
        limit = time.monotonic() + 10
        while not cancelled and time.monotonic() < limit:
            time.sleep(0.02)
        assert cancelled, "the engine goes on for nobody"
        assert driver.get_log("browser") == []


@pytest.mark.parametrize("size", browser_case.SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_with_hostile_answers_wide_and_narrow_light_and_dark(server, monkeypatch, size, scheme):
    answer_with(monkeypatch, HOSTILE)
    with browser(size, scheme) as driver:
        driver.get(server.link)
        shot(driver, f"ask-{size}-{scheme}-empty")
        press(driver, "<b>Is it</b> so?", "\ue007")
        until(driver, DONE.format(1))
        assert driver.execute_script(f"return {TEXTS}") == ["<b>Is it</b> so?", HOSTILE]
        assert driver.title == "drawn" and not driver.find_elements("css selector", "#log img, #log script, #log b")
        driver.execute_script("document.getElementById('show-settings').click()")
        driver.execute_script("document.querySelector('main').scrollTop = 0")
        assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert browser_case.low_contrast(driver) == [] and browser_case.unlabelled(driver) == []
        shot(driver, f"ask-{size}-{scheme}")
        assert driver.get_log("browser") == []


def test_settings_reach_the_model_and_another_answer_takes_the_next_seed(server):
    with browser("phone") as driver:
        driver.get(server.link)
        driver.find_element("id", "show-settings").click()
        for name, value in ask_case.DRAWN.items():
            box = driver.find_element("id", name)
            box.clear()
            box.send_keys(str(value - (name == "seed")))
        driver.find_element("id", "question").send_keys(PROMPTS[0], "\ue007")
        until(driver, DONE.format(1))
        another = driver.find_element("xpath", "//button[text()='Another']")
        another.click()
        until(driver, DONE.format(2))
        question, first, second = driver.execute_script(f"return {TEXTS}")
        assert question == PROMPTS[0] and second == ask_case.drawn()[0] != first
        driver.find_element("id", "question").send_keys("x" * 300, "\ue007")
        problem = until(driver, "document.querySelector('.problem')?.textContent")
        assert "the longest has 200" in problem
        until(driver, f"document.getElementById('question').value === '{'x' * 300}'")  # to be mended
        shot(driver, "ask-phone-problem")
        driver.find_element("id", "new").click()
        assert driver.execute_script(f"return {TEXTS}") == []
