"""The rater's page in a real browser: by keyboard alone, by touch, with hostile texts; light, dark, wide, narrow."""

import contextlib

import pytest

pytest.importorskip("selenium", reason="selenium is not installed")

from flanx.compare import ballot, pairing, rater_page
from tests import browser_case
from tests.browser_case import browser, press, shot, until
from tests.compare_case import HOSTILE, candidate, comparison
from tests.web_case import running

from flanx.compare import site  # isort: skip  (after web_case, which skips without the extra)
from flanx.web.server import Server  # isort: skip

MADE = comparison(4)
SHOWN = "document.getElementById('place').textContent.startsWith('{}')"
FOCUS = "document.activeElement.id"


def begin(driver, name="Ada"):
    until(driver, "document.getElementById('start').open")
    press(driver, name, "\ue007")
    until(driver, "!document.getElementById('start').open")


def test_a_rater_goes_through_by_keyboard_alone_and_comes_back(tmp_path):
    with running(Server(site.routes(MADE, tmp_path))) as server, browser() as driver:
        driver.get(server.link)
        assert driver.current_url == f"{server.url}/"  # the token is out of the address
        begin(driver)
        assert driver.execute_script(f"return {FOCUS}") == "prompt-title"
        until(driver, SHOWN.format("1 of 4"))
        press(driver, "n")
        press(driver, "1 and t are text here", "\ue00c")  # Escape leaves the note
        press(driver, "1")
        until(driver, SHOWN.format("2 of 4"))
        press(driver, "t")
        until(driver, SHOWN.format("3 of 4"))
        press(driver, "p")
        until(driver, SHOWN.format("2 of 4"))
        pressed = driver.find_elements("css selector", ".choice[aria-pressed=true]")
        assert [each.get_attribute("data-choice") for each in pressed] == ["tie"]
        press(driver, "b")  # another choice
        until(driver, SHOWN.format("3 of 4"))
        driver.get(server.url)  # tomorrow
        begin(driver)
        until(driver, SHOWN.format("3 of 4"))
        press(driver, "\ue012")  # the left arrow
        until(driver, SHOWN.format("4 of 4"))
        for _ in range(12):  # Tab reaches the buttons, and Enter presses them
            if driver.switch_to.active_element.get_attribute("data-choice") == "right":
                break
            press(driver, "\ue004")
        press(driver, "\ue007")
        until(driver, "!document.getElementById('done').hidden")
        shot(driver, "desktop-light-done")
        assert driver.get_log("browser") == []
    (ada,) = ballot.read(tmp_path, MADE)
    assert [each.choice for each in ada.ballots.values()] == ["left", "bad", "left", "right"]
    assert ada.ballots[MADE.pairs[0].id, False].note == "1 and t are text here"
    assert ada.changed == 1 and all(each.seconds >= 0 for each in ada.ballots.values())


def test_a_page_of_its_own_keeps_choices_and_saves_them(tmp_path):
    (tmp_path / "page.html").write_text(rater_page.exported(MADE), encoding="utf-8")
    with browser(downloads=tmp_path / "saved") as driver:
        driver.get((tmp_path / "page.html").as_uri())
        begin(driver)
        press(driver, "1")
        until(driver, SHOWN.format("2 of 4"))
        driver.get("about:blank")
        with_alert(driver)
        driver.get((tmp_path / "page.html").as_uri())
        begin(driver)
        until(driver, SHOWN.format("2 of 4"))
        for place in (3, 4):
            press(driver, "2")
            until(driver, SHOWN.format(f"{place} of 4"))
        press(driver, "t")
        until(driver, "!document.getElementById('done').hidden")
        driver.find_element("id", "save").click()
        until(driver, "true")
        for _ in range(100):
            if found := [*(tmp_path / "saved").glob("*.jsonl")] if (tmp_path / "saved").exists() else []:
                break
            until(driver, "new Promise((done) => setTimeout(() => done(true), 50))")
        assert driver.get_log("browser") == []
    assert ballot.read_back(tmp_path, MADE, found[0]).endswith("4 ballots of Ada")
    (ada,) = ballot.read(tmp_path, MADE)
    assert [each.choice for each in ada.ballots.values()] == ["left", "right", "right", "tie"]


def with_alert(driver):
    """Leaves a page that asks whether one is sure."""
    from selenium.common.exceptions import NoAlertPresentException

    with contextlib.suppress(NoAlertPresentException):
        driver.switch_to.alert.accept()


@pytest.mark.parametrize(
    "size, scheme", [("desktop", "light"), ("desktop", "dark"), ("phone", "light"), ("phone", "dark")]
)
def test_it_is_read_and_touched_at_every_size_with_hostile_texts(tmp_path, size, scheme):
    made = pairing.make([candidate("a", HOSTILE), candidate("b", [*HOSTILE[1:], HOSTILE[0]])])
    with running(Server(site.routes(made, tmp_path))) as server, browser(size, scheme) as driver:
        driver.get(server.link)
        assert not browser_case.unlabelled(driver) and not browser_case.low_contrast(driver)
        shot(driver, f"{size}-{scheme}-start")
        begin(driver)
        title = driver.title
        for place, pair in enumerate(made.pairs, 1):
            until(driver, SHOWN.format(place))
            shot(driver, f"{size}-{scheme}-{place}")
            shown = driver.execute_script(
                "return ['left', 'right'].map((id) => document.getElementById(id).textContent)"
            )
            assert shown == [made.answers[pair.prompt][side] for side in pair.sides]
            wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert driver.execute_script(wide) <= 0  # nothing reaches beyond the screen
            assert not browser_case.low_contrast(driver) and not browser_case.unlabelled(driver)
            assert not driver.find_elements("css selector", ".text *")  # no text became an element
            if size == "phone":
                small = [
                    e.size for e in driver.find_elements("css selector", "#choices button") if e.size["height"] < 44
                ]
                assert not small
            driver.find_element("css selector", f"[data-choice={('left', 'tie', 'bad', 'right')[place - 1]}]").click()
        until(driver, "!document.getElementById('done').hidden")
        assert (driver.title, driver.get_log("browser")) == (title, [])
    (ada,) = ballot.read(tmp_path, made)
    assert [each.choice for each in ada.ballots.values()] == ["left", "tie", "bad", "right"]


def test_what_the_server_refuses_is_shown_and_not_counted(tmp_path):
    with browser() as driver:
        with running(Server(site.routes(MADE, tmp_path))) as server:
            driver.get(server.link)
            begin(driver)
            until(driver, SHOWN.format("1 of 4"))
        press(driver, "1")
        error = until(driver, "document.getElementById('error').textContent")
        assert error == "Not saved: The server does not answer. Is flanx compare still running?"
        assert driver.execute_script("return document.getElementById('count').textContent") == "0 of 4 rated"
        assert not driver.find_elements("css selector", ".choice[aria-pressed=true]")


def test_two_tabs_of_a_page_of_its_own_lose_nothing_and_a_draft_of_a_note_stays(tmp_path):
    (tmp_path / "page.html").write_text(rater_page.exported(MADE), encoding="utf-8")
    with browser() as driver:
        address = (tmp_path / "page.html").as_uri()
        driver.get(address)
        begin(driver)
        driver.switch_to.new_window("tab")
        driver.get(address)
        begin(driver)
        press(driver, "1")
        until(driver, SHOWN.format("2 of 4"))
        driver.switch_to.window(driver.window_handles[0])
        press(driver, "s")
        until(driver, SHOWN.format("2 of 4"))
        press(driver, "n")
        press(driver, "a draft", "\ue00c")
        press(driver, "s")
        until(driver, SHOWN.format("3 of 4"))
        press(driver, "2")
        until(driver, "document.getElementById('count').textContent === '2 of 4 rated'")
        press(driver, "p")
        press(driver, "p")
        until(driver, SHOWN.format("2 of 4"))
        assert driver.execute_script("return document.getElementById('note').value") == "a draft"


def test_a_name_that_would_not_be_read_back_is_refused_at_once(tmp_path):
    (tmp_path / "page.html").write_text(rater_page.exported(MADE), encoding="utf-8")
    with browser() as driver:
        driver.get((tmp_path / "page.html").as_uri())
        until(driver, "document.getElementById('start').open")
        driver.execute_script("document.getElementById('name').value = 'a\\u202eb'")
        press(driver, "\ue007")
        assert "do not print" in until(driver, "document.getElementById('name-error').textContent")
