"""Make the picture for docs/serve.md: the page of `ovd serve` in a real browser, in a wide window and on a phone.

    python tools/serve_picture.py runs/quickstart runs/quickstart/example.jpg --names "anchor, yen sign, cat face" \
        --example gadget.png

It needs Chromium, its driver and `pip install selenium`.
"""

import argparse
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from ovd.cli import run_tool

WIDE, PHONE = (1100, 800), (375, 800)
"""Width and height of the two windows, in pixels."""
GAP_PX = 16
COLORS = 256


def _browser(chromium: Path, driver: Path) -> Any:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(chromium)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=Service(str(driver)))


def _shot(browser: Any, url: str, given: argparse.Namespace, size: tuple[int, int], *, dark: bool) -> Image.Image:
    """Take a screenshot of the page after detecting in a picture."""
    mobile = size[0] < 500
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": mobile},
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(url)
    browser.find_element("id", "image").send_keys(str(given.image.resolve()))
    browser.find_element("id", "names").send_keys(given.names)
    for example in given.example:
        browser.find_element("id", "example").send_keys(str(example.resolve()))
    browser.find_element("id", "find").click()
    for _ in range(600):
        if browser.find_elements("css selector", "#boxes text"):
            break
        if error := browser.find_element("id", "error").text:
            raise ValueError(f"{given.image}: the page shows the error {error!r}")
        time.sleep(0.1)
    else:
        raise ValueError(f"{given.image}: the page shows no boxes; try other --names")
    if mobile:
        browser.execute_script("document.getElementById('example-drop').scrollIntoView()")
    return Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")


def _side_by_side(shots: list[Image.Image]) -> Image.Image:
    width = sum(shot.width for shot in shots) + GAP_PX * (len(shots) - 1)
    canvas = Image.new("RGB", (width, max(shot.height for shot in shots)), "white")
    left = 0
    for shot in shots:
        canvas.paste(shot, (left, 0))
        left += shot.width + GAP_PX
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of a trained detector")
    parser.add_argument("image", type=Path)
    parser.add_argument("--names", required=True, help="comma-separated names to look for")
    parser.add_argument("--example", type=Path, action="append", default=[], help="picture of a thing to look for")
    parser.add_argument(
        "--output", type=Path, default=Path("docs/serve.png"), help="PNG file to write (default: %(default)s)"
    )
    parser.add_argument("--chromium", type=Path, default=Path("/usr/bin/chromium"))
    parser.add_argument("--driver", type=Path, default=Path("/usr/bin/chromedriver"))
    arguments = parser.parse_args()
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "ovd", "serve", str(arguments.run), "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            if "http://" not in line:
                log.seek(0)
                raise ValueError(f"the server does not start: {log.read().strip()}")
            url = f"http://{line.partition('http://')[2].split()[0]}"
            browser = _browser(arguments.chromium, arguments.driver)
            try:
                shots = [
                    _shot(browser, url, arguments, WIDE, dark=False),
                    _shot(browser, url, arguments, PHONE, dark=True),
                ]
            finally:
                browser.quit()
        finally:
            server.terminate()
            server.wait(20)
    picture = _side_by_side(shots).quantize(COLORS)
    picture.save(arguments.output, optimize=True)
    print(f"{arguments.output}: {arguments.output.stat().st_size // 1000} kB")


if __name__ == "__main__":
    run_tool(main)
