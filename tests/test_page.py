"""The page of a served run in a real browser: what it shows is what the run says, on a phone too."""

import re
import shutil
from pathlib import Path

import pytest
from served import BLUE, GREEN, MIXED, RED, TOKEN, colour_run, process

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright and chromium: pip install playwright")
pytest.importorskip("uvicorn", reason='needs the extra serve: pip install -e ".[serve]"')
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAGE = Path(__file__).parents[1] / "template" / "deploy" / "serve" / "page.html"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kept") / "corrections"


@pytest.fixture(scope="module")
def address(tmp_path_factory, kept):
    home = tmp_path_factory.mktemp("served")
    with process(
        "--run", colour_run(home / "colours", novelty=True), colour_run(home / "other", (2, 1, 0)), "--collect", kept
    ) as (
        _,
        port,
    ):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture
def page(browser, address):
    """The page at the width of a phone; in the end it has asked nobody else, and its console is silent."""
    opened = browser.new_page(viewport={"width": 390, "height": 844})
    heard, asked = [], []
    opened.on("console", lambda message: heard.append(message.text))
    opened.on("pageerror", lambda error: heard.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(address)
    sync_api.expect(opened.locator("#about")).to_contain_text("One of")
    yield opened
    wide = opened.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, "nothing is cut off at the right"
    assert all(url.startswith((address, "blob:", "data:")) for url in asked)
    assert [words for words in heard if "status of 422" not in words] == []  # a browser notes every one by itself
    opened.close()


def files(*contents: bytes) -> list[dict]:
    return [{"name": f"{n}.png", "mimeType": "image/png", "buffer": each} for n, each in enumerate(contents)]


def answers(page, count: int) -> list[str]:
    """In the order in which the files were given."""
    sync_api.expect(page.locator("#status")).to_contain_text(f"{count} of {count} ")
    return page.locator(".card .answer, .card .error").all_inner_texts()[::-1]


@pytest.mark.slow
def test_files_are_answered_with_bars_and_doubts(page):
    assert "One of: red, green, blue. Below 90 % the answer is “not sure”." in page.inner_text("#about")
    page.set_input_files("#choose", files(RED, MIXED))
    assert answers(page, 2) == ["red", "not sure"]
    bars = page.locator(".card").first.locator(".bars li")
    assert re.fullmatch(r"red\s+8[0-9] %", bars.first.inner_text()) and bars.count() == 3
    shares = bars.locator("b").evaluate_all("all => all.map(each => parseFloat(each.style.width))")
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=0.1)


@pytest.mark.slow
def test_what_is_like_nothing_in_training_is_said_under_its_answer(page):
    page.set_input_files("#choose", files(RED, GREEN))
    assert answers(page, 2) == ["red", "green"]
    strange = [card.locator(".strange").is_visible() for card in page.locator(".card").all()[::-1]]
    assert strange == [False, True] and "Not like anything in training" in page.locator(".strange").first.inner_text()


@pytest.mark.slow
def test_one_that_cannot_be_read_has_a_reason_among_twenty(page):
    page.set_input_files("#choose", files(*[RED, BLUE] * 10, b"<b>no</b>"))
    found = answers(page, 21)
    assert found[:20] == ["red", "blue"] * 10 and "Cannot be read: text, not an image" in found[20]


@pytest.mark.slow
def test_a_paste_and_a_drop_are_answered_and_names_are_text(page):
    page.evaluate("""bytes => {
        const name = "<img src=x onerror=alert(1)>.png", type = "image/png";
        const file = new File([new Uint8Array(bytes)], name, { type });
        for (const [kind, key] of [["paste", "clipboardData"], ["drop", "dataTransfer"]]) {
            const event = new Event(kind, { cancelable: true });
            event[key] = { files: [file] };
            dispatchEvent(event);
        }
    }""", list(BLUE))  # fmt: skip
    assert answers(page, 2) == ["blue", "blue"]
    assert page.inner_text(".card .name") == "<img src=x onerror=alert(1)>.png"


@pytest.mark.slow
def test_another_run_answers_where_it_is_chosen(page):
    at_once = """contents => {
        get("models").value = "other";
        get("models").onchange();
        add([new File([new Uint8Array(contents)], "0.png", { type: "image/png" })]);
    }"""
    page.evaluate(at_once, list(RED))  # before the card of that run can be there
    assert answers(page, 1) == ["blue"]
    assert page.input_value("#models") == "other"


@pytest.mark.slow
def test_why_is_drawn_and_taken_away_by_the_keyboard(page):
    page.set_input_files("#choose", files(RED))
    answers(page, 1)
    page.locator(".why").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".view canvas")
    assert page.get_attribute(".why", "aria-pressed") == "true" and "“red” rests on it" in page.inner_text(".said")
    assert page.evaluate("document.activeElement.className") == "why"
    page.keyboard.press("Space")
    assert page.locator(".view canvas").count() == 0 and page.locator(".view img").is_visible()


@pytest.mark.slow
def test_a_wrong_answer_is_corrected_with_a_click(page, kept):
    page.set_input_files("#choose", files(MIXED))
    answers(page, 1)
    page.select_option(".right", "green")
    page.wait_for_selector(".said:has-text('Kept for the next training: green')")
    header, row = (kept / "labels.csv").read_text().splitlines()
    path, _, label = row.partition(",")
    assert header == "path,label" and label == "green" and (kept / path).read_bytes() == MIXED


@pytest.mark.slow
def test_a_token_is_asked_for_and_nothing_is_kept_unless_it_was_said(browser, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    with process("--run", colour_run(tmp_path / "colours"), "--token-file", tmp_path / "token") as (_, port):
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        sync_api.expect(page.locator("#about")).to_contain_text("One of")
        assert page.locator("#token").is_hidden()
        page.set_input_files("#choose", files(RED))
        assert answers(page, 1) == ["red"] and page.locator(".right").is_hidden()
        page.close()


# Without a browser


def luminance(color: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2.2)."""
    shares = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_apart(scheme):
    line = re.findall(r":root \{(.*?)\}", PAGE.read_text(encoding="utf-8"))[scheme]
    colors = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", line))

    def contrast(one: str, other: str) -> float:
        bright, dark = sorted((luminance(colors[one]), luminance(colors[other])), reverse=True)
        return (bright + 0.05) / (dark + 0.05)

    for text in ("ink", "soft", "bad"):
        assert contrast(text, "page") >= 4.5 and contrast(text, "card") >= 4.5, text
    for shape in ("line", "tint"):
        assert contrast(shape, "card") >= 3 and contrast(shape, "page") >= 3, shape
    assert contrast("tint", "track") >= 3


def test_the_page_names_no_address_but_its_own():
    assert not re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", PAGE.read_text(encoding="utf-8"))
