"""The page in a real browser: a user's actions, and the messages shown on errors."""

import base64
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_server import Running, png, running

from ovd.visualize.palette import class_color

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM.exists() and DRIVER.exists()), reason=f"no {CHROMIUM} and {DRIVER} to drive"),
]


@pytest.fixture(scope="module")
def page_server(service, settings) -> Iterator[Running]:
    settings = replace(settings, threshold=0.3)
    with running(service, settings, megabytes=8.0, megapixels=50.0, body_seconds=20.0, head_seconds=20.0) as found:
        yield found


class Browser:
    """A browser on the page, with the actions that the tests need."""

    def __init__(self, driver: Any, url: str, downloads: Path):
        self.driver = driver
        self.url = url
        self.downloads = downloads

    def open(self) -> "Browser":
        self.driver.get(self.url)
        self.until(lambda: self.text("model").startswith("Detector tiny"))
        return self

    def element(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def text(self, name: str) -> str:
        return self.element(name).text

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def choose(self, path: Path) -> None:
        self.element("image").send_keys(str(path))

    def type_names(self, names: str) -> None:
        self.element("names").clear()
        self.element("names").send_keys(names)

    def find(self) -> None:
        self.element("find").click()

    def boxes(self) -> int:
        return len(self.driver.find_elements("css selector", "#boxes text"))

    def slide(self, value: float) -> None:
        self.run(
            f"const slider = document.getElementById('threshold'); slider.value = {value};"
            "slider.dispatchEvent(new Event('input'));"
        )

    def until(self, condition: Callable[[], Any], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"error: {self.text('error')!r}, status: {self.text('status')!r}"
            time.sleep(0.05)

    def until_answered(self) -> None:
        self.until(lambda: self.text("error") or (self.text("status") not in ("", "Looking…")))


@pytest.fixture(scope="module")
def browser(page_server, tmp_path_factory) -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    downloads = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    os.environ["SE_AVOID_STATS"] = "true"
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield Browser(driver, page_server.url, downloads)
    driver.quit()


@pytest.fixture
def picture(tmp_path) -> Path:
    (tmp_path / "photo.png").write_bytes(png(60, 90))
    return tmp_path / "photo.png"


def test_a_person_finds_things_and_moves_the_slider(browser, page_server, picture):
    browser.open()
    names = "anchor\ncat face, umbrella"
    browser.choose(picture)
    browser.type_names(names)
    browser.find()
    browser.until_answered()
    assert browser.text("error") == ""
    requests = browser.run("return performance.getEntriesByType('resource').length")
    shown = {}
    for least in (0.9, 0.3, 0.05):
        browser.slide(least)
        shown[least] = browser.boxes()
        assert browser.text("threshold-value") == f"{least:.2f}"
        expected = page_server.detect(picture.read_bytes(), names=names, threshold=least)
        assert shown[least] == len(expected.json()["annotations"])
    assert shown[0.05] > shown[0.9]
    assert requests > 2
    assert browser.run("return performance.getEntriesByType('resource').length") == requests, "the slider asked again"
    assert len(browser.driver.find_elements("css selector", "#rows tr")) == shown[0.05]
    assert not [entry for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_boxes_are_asked_for_from_the_detectors_own_threshold_on_where_it_is_low(browser, service, settings, picture):
    with running(service, replace(settings, threshold=0.01)) as low:
        browser.driver.get(low.url)
        browser.until(lambda: browser.text("model"))
        browser.choose(picture)
        browser.type_names("anchor")
        browser.find()
        browser.until_answered()
        assert browser.run("return found.info.threshold") == 0.01
        assert browser.element("threshold").get_attribute("value") == "0.01"
        assert browser.text("threshold-value") == "0.01"


def test_where_no_box_is_shown_the_best_one_is_named(browser, page_server, picture):
    browser.open()
    browser.choose(picture)
    browser.type_names("anchor")
    browser.find()
    browser.until_answered()
    best = browser.run("return found.annotations[0].score.toFixed(2)")
    browser.slide(1)
    assert browser.text("status").startswith(f"No box; the best is anchor {best}. Lower the least ")


def test_the_download_is_what_is_shown(browser, page_server, picture):
    browser.open()
    browser.choose(picture)
    browser.type_names("anchor")
    browser.find()
    browser.until_answered()
    browser.slide(0.05)
    browser.element("download").click()
    file = browser.downloads / "photo.detections.json"
    browser.until(lambda: file.exists() and file.read_text().endswith("}"))
    content = json.loads(file.read_text())
    assert len(content["annotations"]) == browser.boxes() > 0
    assert content["images"] == [{"id": 1, "file_name": "photo.png", "width": 90, "height": 60}]
    assert content["info"]["threshold"] == 0.05


def test_boxes_lie_where_the_answer_says(browser, page_server, picture):
    browser.open()
    browser.choose(picture)
    browser.type_names("anchor")
    browser.find()
    browser.until_answered()
    browser.slide(0.05)
    answer = page_server.detect(picture.read_bytes(), names="anchor", threshold=0.05).json()
    x, y, width, height = answer["annotations"][0]["bbox"]
    drawn = browser.run(
        "const all = document.querySelectorAll('#boxes rect[fill=none]'), last = all[all.length - 1];"
        "const a = last.getBoundingClientRect(), b = document.getElementById('picture').getBoundingClientRect();"
        "return [(a.x - b.x) / b.width, (a.y - b.y) / b.height, a.width / b.width, a.height / b.height]"
    )
    assert drawn == pytest.approx([x / 90, y / 60, width / 90, height / 60], abs=0.01)


def test_a_name_has_the_color_that_it_has_in_all_pictures(browser, page_server, picture):
    browser.open()
    browser.choose(picture)
    browser.type_names("cat face, anchor")
    browser.find()
    browser.until_answered()
    browser.slide(0.05)
    rows = browser.run(
        "return [...document.querySelectorAll('#rows tr')].map((row) => "
        "[row.cells[0].textContent, row.querySelector('.swatch').style.backgroundColor])"
    )
    assert rows
    for name, color in rows:
        assert color == f"rgb{class_color(name)}"


def test_a_hundred_megapixels_and_a_text_as_picture_are_refused_in_plain_words(browser, picture, tmp_path):
    Image.fromarray(np.zeros((10_000, 10_000), dtype=np.uint8)).save(tmp_path / "huge.png")
    (tmp_path / "text.jpg").write_text("this is no picture\n" * 50)
    (tmp_path / "fat.png").write_bytes(bytes(9_000_000))
    for name, sentence in (
        ("huge.png", "The picture has more than 50 megapixels; make it smaller."),
        ("text.jpg", "The file is damaged or not a picture; allowed are JPEG, PNG,"),
        ("fat.png", "The picture file is larger than 8 megabytes."),
    ):
        browser.open()
        browser.choose(tmp_path / name)
        browser.type_names("anchor")
        browser.find()
        browser.until(lambda: browser.text("error"))
        assert browser.text("error").startswith(sentence)
        assert browser.boxes() == 0
    browser.choose(picture)  # the next request works
    browser.find()
    browser.until_answered()
    assert browser.text("error") == ""


def test_two_hundred_names_and_more_than_allowed(browser, picture):
    browser.open()
    browser.choose(picture)
    for number, sentence in ((200, ""), (201, "There are 201 names; at most 200 are allowed in a request.")):
        names = json.dumps(", ".join(f"name {i}" for i in range(number)))
        browser.run(f"document.getElementById('names').value = {names}")
        browser.find()
        browser.until(lambda: not browser.element("find").get_attribute("aria-busy"))
        browser.until_answered()
        assert browser.text("error") == sentence


DROP = """
const bytes = Uint8Array.from(atob(arguments[1]), (letter) => letter.charCodeAt(0));
const files = new DataTransfer();
files.items.add(new File([bytes], arguments[2], { type: "image/png" }));
for (const type of ["dragenter", "dragover", "drop"]) {
  const event = new DragEvent(type, { bubbles: true, cancelable: true, dataTransfer: files });
  document.getElementById(arguments[0]).dispatchEvent(event);
}
"""


def drop(browser, place: str, content: bytes, name: str) -> None:
    browser.driver.execute_script(DROP, place, base64.b64encode(content).decode(), name)


def test_dropped_crops_are_looked_for_and_can_be_removed(browser, page_server, picture):
    browser.open()
    drop(browser, "drop", picture.read_bytes(), "photo.png")
    assert browser.text("image-help").startswith("photo.png")
    for seed, name in ((1, "odd_thing.png"), (2, "other.png")):
        drop(browser, "example-help", png(20, 30, seed=seed), name)
    names = browser.driver.find_elements("css selector", "#examples input")
    assert [name.get_attribute("value") for name in names] == ["odd thing", "other"]
    names[1].clear()
    browser.find()
    assert browser.text("error") == "Give a name to each picture of what to look for."
    names[1].send_keys("odd thing")
    browser.find()
    browser.until_answered()
    assert browser.text("error") == ""
    browser.slide(0.05)
    files = [("image", ("photo.png", picture.read_bytes()))]
    files += [("example", ("crop.png", png(20, 30, seed=seed))) for seed in (1, 2)]
    expected = page_server.client.post(
        "/api/detect", files=files, data={"example_name": ["odd thing"] * 2, "threshold": 0.05}
    )
    assert browser.boxes() == len(expected.json()["annotations"]) > 0
    assert "odd thing" in browser.text("status")
    assert "2 examples" in page_server.lines[-1]
    for button in browser.driver.find_elements("css selector", "#examples button"):
        button.click()
    assert not browser.driver.find_elements("css selector", "#examples li")
    browser.find()
    assert browser.text("error") == "Type at least one name to look for."


def test_what_is_missing_is_said(browser, picture):
    browser.open()
    browser.find()
    assert browser.text("error") == "Choose a picture first."
    browser.choose(picture)
    browser.type_names(" , ")
    browser.find()
    assert browser.text("error") == "Type at least one name to look for."


def test_names_are_text_never_markup(browser, picture):
    browser.open()
    browser.choose(picture)
    browser.type_names("<img src=x onerror=\"document.title='taken'\">")
    browser.find()
    browser.until_answered()
    browser.slide(0.05)
    assert browser.boxes() > 0
    assert "<img src=x" in browser.text("status")
    assert browser.run("return document.querySelectorAll('main img').length") == 1
    assert browser.driver.title == "Find things in a picture"


def test_two_tabs_at_once(browser, page_server, picture, tmp_path):
    other = tmp_path / "other.png"
    other.write_bytes(png(90, 60, seed=1))
    first = browser.driver.current_window_handle
    browser.open()
    browser.choose(picture)
    browser.type_names("anchor")
    browser.driver.switch_to.new_window("tab")
    second = browser.driver.current_window_handle
    browser.open()
    browser.choose(other)
    browser.type_names("umbrella")
    browser.find()
    browser.driver.switch_to.window(first)
    browser.find()
    for handle, name in ((first, "anchor"), (second, "umbrella")):
        browser.driver.switch_to.window(handle)
        browser.until_answered()
        browser.slide(0.05)
        assert name in browser.text("status")
    browser.driver.close()
    browser.driver.switch_to.window(first)


def test_everything_is_reached_by_the_keyboard_in_order(browser, picture):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser.open()
    browser.choose(picture)
    browser.type_names("anchor")
    browser.element("names").send_keys(Keys.CONTROL, Keys.ENTER)
    browser.until_answered()
    browser.run("document.querySelector('nav a').focus()")
    reached = []
    for _ in range(7):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        reached.append(browser.run("const a = document.activeElement; return a.id || a.tagName.toLowerCase()"))
    assert reached == ["image", "names", "summary", "example", "find", "threshold", "download"]
    for name in ("image", "names", "example", "threshold"):
        assert browser.run(f"return document.getElementById('{name}').labels.length") == 1
    browser.element("threshold").send_keys(Keys.HOME)
    assert browser.text("threshold-value") == "0.05"


def test_a_phone_shows_all_without_scrolling_sideways(browser, picture):
    try:
        browser.driver.set_window_size(500, 800)  # the narrowest window; the page's size is then set by hand
        browser.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
        )
        browser.open()
        browser.choose(picture)
        browser.type_names("a name of very many letters without any spaceinbetweenitsothatitisratherlong")
        browser.find()
        browser.until_answered()
        assert browser.run("return document.documentElement.scrollWidth") <= 360
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.driver.set_window_size(1200, 900)


def test_a_server_that_is_gone_is_said(trained, settings, browser, picture, service):
    with running(service, settings) as gone:
        browser.driver.get(gone.url)
        browser.until(lambda: browser.text("model"))
    browser.choose(picture)
    browser.type_names("anchor")
    browser.find()
    browser.until(lambda: browser.text("error"))
    assert browser.text("error") == "The server cannot be reached, or it ended the connection."
