"""The page of a prediction in a real browser: what is under the pointer, and classes that are switched off."""

import numpy as np
import pytest
from browser import needs_browser, shown

from kiloseg.inference.classes import ModelClasses
from kiloseg.inference.result import Result

pytestmark = needs_browser

EVIL = "</script><script>document.title = 'taken over'</script>"


def result(height=60, width=80):
    """Class 700 at the left, class 3, whose name is markup, at the right."""
    names = [f"thing {number}" for number in range(1000)]
    names[3] = EVIL
    labels = np.full((height, width), 700, dtype=np.int32)
    labels[:, width // 2 :] = 3
    confidence = np.where(labels == 3, 0.75, 0.9).astype(np.float16)
    pixels = np.full((height, width, 3), 128, dtype=np.uint8)
    classes = ModelClasses(ids=np.arange(1000), names=names)
    return Result(labels=labels, confidence=confidence, pixels=pixels, classes=classes, image="two halves.png")


def tint_at(page, x, y):
    """Red, green, blue and alpha that lie over a pixel of the image."""
    return page.evaluate(
        f"Array.from(document.getElementById('tint').getContext('2d').getImageData({x}, {y}, 1, 1).data)"
    )


@pytest.mark.timeout(300)
def test_pointer_and_switches(tmp_path):
    made = result()
    (*_, path, summary) = made.save(tmp_path, page=True)
    assert (path.name, summary.suffix) == ("two halves.html", ".json")
    with shown(path) as page:
        assert page.title() == "kiloseg prediction" and page.locator("h1").inner_text() == "two halves.png"
        box = page.locator("#tint").bounding_box()
        for x, name, sure in ((10, "thing 700", "90 % sure at 10, 30"), (70, EVIL, "75 % sure at 70, 30")):
            page.mouse.move(box["x"] + (x + 0.5) * box["width"] / 80, box["y"] + 30.5 * box["height"] / 60)
            assert page.locator("#under").text_content() == name + sure
        assert page.locator("#classes label").count() == 2
        red, green, blue = made.classes.colors[700].tolist()
        over = tint_at(page, 10, 30)
        assert over[3] == 140 and np.abs(np.subtract(over[:3], (red, green, blue))).max() <= 2
        page.locator("#classes label", has_text="thing 700").locator("input").uncheck()
        assert tint_at(page, 10, 30)[3] == 0 and tint_at(page, 70, 30)[3] == 140
        page.locator("#none").click()
        assert tint_at(page, 70, 30)[3] == 0
        page.locator("#all").click()
        assert tint_at(page, 10, 30)[3] == tint_at(page, 70, 30)[3] == 140


@pytest.mark.timeout(300)
def test_a_large_image_is_shown_smaller_and_still_named(tmp_path):
    path = tmp_path / "large.html"
    path.write_text(result(height=100, width=4096).page())
    with shown(path) as page:
        assert page.evaluate("document.getElementById('tint').width") == 2048
        box = page.locator("#tint").bounding_box()
        page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.5 * box["height"])
        assert EVIL in page.locator("#under").text_content()
