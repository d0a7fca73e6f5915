"""Takes a picture of a page's first screen: `python docs/pictures.py PAGE OUT.png [WIDTH] [dark]`.

The page is opened in Chromium as a reader has it; the picture has 128 colours at most, to be small.
WIDTH is 1280 (a desktop) unless told otherwise; 390 is a phone.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

HEIGHTS = {1280: 900, 390: 844}
COLOURS = 128


def picture(page: Path, width: int, scheme: str) -> Image.Image:
    """The first screen of `page`, which has drawn what is on it."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        size = {"width": width, "height": HEIGHTS.get(width, 900)}
        shown = browser.new_page(viewport=size, color_scheme=scheme)
        shown.goto(page.resolve().as_uri())
        shown.wait_for_selector("html[data-ready]")
        drawn = Image.open(io.BytesIO(shown.screenshot()))
        browser.close()
    return drawn.convert("RGB").quantize(COLOURS)


def main() -> None:
    """Take the picture that the command line names."""
    source, target, *how = sys.argv[1:]
    width = next((int(word) for word in how if word.isdecimal()), 1280)
    scheme = "dark" if "dark" in how else "light"
    picture(Path(source), width, scheme).save(target, optimize=True)


main()
