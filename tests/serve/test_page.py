"""The page in a real browser, on a real server with a small model: chat, live view, keyboard, words for errors.

Pictures of it are left in `build/screenshots/`.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from page_server import Server, model_folder, serving

pytest.importorskip("playwright", reason="playwright is not installed; it is in the extra `dev`")
from playwright.sync_api import Browser, BrowserContext, Download, Page, expect, sync_playwright

import moesaic

ROOT = Path(__file__).parents[2]
PAGE = Path(moesaic.__path__[0]) / "serve" / "page"
SHOTS = ROOT / "build" / "screenshots"
SWITCHES = [
    "--no-sandbox",  # CI is root
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
WAIT_MS = 60_000  # for what must happen; only a failure takes so long
SECRET = "a-key-of-the-tests"
HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, "--draft", "lookup", "--price", "0.5/h", "--max-token-latency", "2s") as found:
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    SHOTS.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=SWITCHES)
        yield browser
        browser.close()


class Visit:
    """A page that was opened, and everything it asked for and complained of."""

    def __init__(self, context: BrowserContext, address: str) -> None:
        self.page: Page = context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)

    def ask(self, text: str, **parameters: float) -> None:
        """Sets parameters and sends a message."""
        if parameters and not self.page.locator("#settings").is_visible():
            self.page.click("#parameters summary")
        for name, value in parameters.items():
            self.page.fill(f"#p-{name}", str(value))
        self.page.fill("#message", text)
        self.page.press("#message", "Enter")

    def wait(self) -> None:
        """Until the answer has ended."""
        expect(self.page.locator("#send")).to_be_visible()
        expect(self.page.locator("#turns")).to_have_attribute("aria-busy", "false")

    def export(self) -> dict[str, Any]:
        with self.page.expect_download() as found:
            self.page.click("#export")
        download: Download = found.value
        assert re.fullmatch(r"chat-[\dT-]+\.json", download.suggested_filename)
        content: dict[str, Any] = json.loads(download.path().read_text(encoding="utf-8"))
        return content

    def shot(self, name: str) -> None:
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


Opener = Callable[..., Visit]


@pytest.fixture
def visit(chromium: Browser, server: Server) -> Iterator[Opener]:
    """Opens the page in a context of its own; whatever it did, it asked nobody but its server."""
    visits: list[tuple[Visit, str]] = []
    contexts: list[BrowserContext] = []

    def open_page(path: str = "/", at: str = server.address, width: int = 1280, **context: Any) -> Visit:
        contexts.append(chromium.new_context(viewport={"width": width, "height": 860}, **context))
        visits.append((Visit(contexts[-1], at + path), at))
        return visits[-1][0]

    yield open_page
    for context in contexts:
        context.close()
    for done, at in visits:
        others = [url for url in done.asked if not url.startswith((at + "/", f"blob:{at}/"))]
        assert not others


def test_the_page_loads_without_a_complaint(visit: Opener, server: Server) -> None:
    seen = visit()
    expect(seen.page.locator("#model-name")).to_have_text(server.model)
    seen.page.click("#to-live")
    expect(seen.page.locator("#tiles dt").first).to_be_visible()
    assert not seen.complaints
    # Every file is part of the page.
    names = {url.removeprefix(f"{server.address}/") for url in seen.asked}
    assert {file.name for file in PAGE.iterdir() if file.name != "index.html"} <= names


def test_no_file_of_the_page_points_elsewhere_or_makes_markup_of_text() -> None:
    for file in PAGE.iterdir():
        content = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(
            r"https?:|@import|url\(|innerHTML|outerHTML|insertAdjacentHTML|eval\(|<style|\son\w+=", content
        )
        assert "style=" not in content
        assert len(content.splitlines()) <= 300
    index = (PAGE / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script[^>]*>([^<]*)", index) == [""]


def test_an_answer_streams_and_is_what_the_api_says(visit: Opener, server: Server) -> None:
    seen = visit()
    # Lengths of the text as they were drawn.
    seen.page.evaluate(
        """() => { window.lengths = []; new MutationObserver(() => {
            const body = document.querySelector(".turn.assistant .body");
            if (body) window.lengths.push(body.textContent.length);
        }).observe(document.querySelector("#turns"), {subtree: true, childList: true}); }"""
    )
    seen.ask("Tell me of heaps.", temperature=0, max_tokens=120)
    seen.wait()
    lengths = seen.page.evaluate("window.lengths")
    assert len(set(lengths)) > 5
    assert lengths[1] < lengths[-1] / 2

    file = seen.export()
    question, answer = file["messages"]
    assert question == {"role": "user", "content": "Tell me of heaps."}
    body = {"model": server.model, "messages": [question], "temperature": 0, "max_tokens": 120}
    said = server.post("/v1/chat/completions", body).json()
    assert answer["content"] == said["choices"][0]["message"]["content"]
    assert answer["finish_reason"] == said["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == said["usage"]["completion_tokens"] == 120
    assert file["parameters"] == {"temperature": 0, "max_tokens": 120}

    figures = seen.page.locator(".turn.assistant .figures li").all_text_contents()
    for wanted in (
        r"120 tokens",
        r".* tokens/s",
        r"first token after .*s",
        r"\$.*",
        r"exact",
        r"cut at its length limit",
    ):
        assert [f for f in figures if re.fullmatch(wanted, f)], wanted
    assert not seen.complaints


def test_tokens_of_the_draft_are_marked_where_they_are(visit: Opener, server: Server) -> None:
    seen = visit()
    seen.ask("Again, please.", temperature=0, max_tokens=300)
    seen.wait()
    answer = seen.export()["messages"][1]
    drafted = [token["text"] for token in answer["tokens"] if token["drafted"]]
    assert "".join(token["text"] for token in answer["tokens"]) == answer["content"]
    assert drafted
    assert len(drafted) < len(answer["tokens"])
    # Signs of Markdown are not drawn, so a marked text may be shorter than its token.
    drawn = "".join(seen.page.locator(".turn.assistant .drafted").all_text_contents())
    assert "".join(c for c in "".join(drafted) if c.isalnum()) == "".join(c for c in drawn if c.isalnum())
    marked = seen.page.locator(".turn.assistant .drafted").first
    color = "e => getComputedStyle(e).backgroundColor"
    before = marked.evaluate(color)
    seen.shot("chat-light")
    seen.page.uncheck("#marks")
    assert marked.evaluate(color) != before


def test_stop_ends_the_answer_and_frees_the_engine(visit: Opener, server: Server) -> None:
    seen = visit()
    seen.ask("A long one, please.", temperature=0)
    expect(seen.page.locator(".turn.assistant .body")).not_to_be_empty()
    seen.page.click("#stop")
    seen.wait()
    expect(seen.page.locator(".figures")).to_contain_text("stopped")
    answer = seen.export()["messages"][1]
    assert answer["stopped"]
    assert answer["content"]
    assert answer["usage"] is None
    server.wait_until_idle()
    # The conversation goes on, with what there is of the answer.
    seen.ask("And now?", max_tokens=5)
    seen.wait()
    assert [m["role"] for m in seen.export()["messages"]] == ["user", "assistant", "user", "assistant"]
    assert not seen.complaints


def test_an_answer_is_made_anew(visit: Opener) -> None:
    seen = visit()
    seen.ask("Say something.", temperature=1, seed=1, max_tokens=30)
    seen.wait()
    first = seen.export()["messages"]
    seen.page.click("text=Regenerate")
    seen.wait()
    same = seen.export()["messages"]
    assert same[1]["content"] == first[1]["content"]
    seen.page.fill("#p-seed", "2")
    seen.page.click("text=Regenerate")
    seen.wait()
    other = seen.export()["messages"]
    assert len(other) == 2
    assert other[0] == first[0]
    assert other[1]["content"] != first[1]["content"]


def test_a_question_can_be_edited_and_a_chat_begun_anew(visit: Opener) -> None:
    seen = visit()
    seen.ask("First.", max_tokens=3)
    seen.wait()
    seen.ask("Secnod.", max_tokens=3)
    seen.wait()
    seen.page.click("text=Edit")
    expect(seen.page.locator("#message")).to_have_value("Secnod.")
    expect(seen.page.locator(".turn")).to_have_count(2)
    seen.ask("Second.", max_tokens=3)
    seen.wait()
    assert [m["content"] for m in seen.export()["messages"] if m["role"] == "user"] == ["First.", "Second."]
    seen.page.click("#new-chat")
    expect(seen.page.locator("#welcome")).to_be_visible()
    expect(seen.page.locator("#export")).to_be_disabled()


def test_the_system_message_goes_along(visit: Opener) -> None:
    seen = visit()
    seen.page.fill("#p-system", "You are terse.")
    with seen.page.expect_request("**/v1/chat/completions") as found:
        seen.ask("Hello", max_tokens=3)
    sent = found.value.post_data_json
    assert sent["messages"] == [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Hello"}]
    assert sent["stream_options"] == {"include_usage": True}
    assert not {"temperature", "top_p", "seed", "leniency"} & set(sent)
    seen.wait()


def test_a_refusal_is_shown_in_the_servers_words_and_can_be_tried_again(visit: Opener, server: Server) -> None:
    seen = visit()
    long = "word " * 4000
    refusal = server.post(
        "/v1/chat/completions", {"model": server.model, "messages": [{"role": "user", "content": long.strip()}]}
    )
    assert refusal.status_code == 400
    seen.ask(long)
    seen.wait()
    expect(seen.page.get_by_role("alert")).to_contain_text(refusal.json()["error"]["message"])
    seen.shot("chat-error")
    # The long question is left out of what follows.
    seen.ask("Short.", max_tokens=3)
    seen.wait()
    expect(seen.page.locator(".turn.assistant").last.locator(".figures")).to_contain_text("3 tokens")


def test_a_lost_server_is_told_and_retry_answers(visit: Opener) -> None:
    seen = visit()
    seen.page.context.set_offline(True)
    seen.ask("Are you there?", max_tokens=5)
    expect(seen.page.get_by_role("alert")).to_contain_text("cannot be reached")
    seen.page.context.set_offline(False)
    seen.page.click("text=Retry")
    seen.wait()
    expect(seen.page.get_by_role("alert")).to_have_count(0)
    expect(seen.page.locator(".figures")).to_contain_text("5 tokens")


def test_an_answer_that_breaks_off_keeps_its_beginning(visit: Opener, folder: Path) -> None:
    with serving(folder) as mortal:
        seen = visit(at=mortal.address)
        seen.ask("A long one, please.", temperature=0)
        expect(seen.page.locator(".turn.assistant .body")).to_contain_text("Each token visits")
        mortal.process.kill()
        seen.wait()
        expect(seen.page.get_by_role("alert")).to_contain_text("broke off")
        expect(seen.page.locator(".turn.assistant .body")).to_contain_text("Each token visits")
        seen.page.click("text=Retry")
        expect(seen.page.get_by_role("alert")).to_contain_text("cannot be reached")
        seen.page.click("#to-live")
        expect(seen.page.locator("#live-state")).to_contain_text("cannot be reached")


def test_a_field_out_of_range_is_pointed_at(visit: Opener) -> None:
    seen = visit()
    seen.ask("Hello", leniency=2)
    expect(seen.page.locator("#p-leniency")).to_be_focused()
    expect(seen.page.locator(".turn")).to_have_count(0)
    seen.page.fill("#p-leniency", "0.5")
    expect(seen.page.locator("#h-leniency")).to_have_text("no token becomes more than 2 times likelier")


def test_a_key_is_asked_for_and_kept_in_this_tab_only(visit: Opener, folder: Path) -> None:
    with serving(folder, key=SECRET) as guarded:
        seen = visit(at=guarded.address)
        expect(seen.page.locator("#model-name")).to_have_text("API key needed")
        seen.ask("Hello", max_tokens=4)
        expect(seen.page.get_by_role("alert")).to_contain_text("API key")
        expect(seen.page.locator("#p-key")).to_be_focused()
        seen.page.fill("#p-key", SECRET)
        seen.page.press("#p-key", "Tab")
        expect(seen.page.locator("#model-name")).to_have_text(guarded.model)
        seen.page.click("text=Retry")
        seen.wait()
        expect(seen.page.locator(".figures")).to_contain_text("4 tokens")
        assert SECRET not in json.dumps(seen.export())
        stores = "() => [JSON.stringify(localStorage), document.cookie, location.href].join()"
        assert SECRET not in seen.page.evaluate(stores)
        seen.page.reload()
        expect(seen.page.locator("#model-name")).to_have_text(guarded.model)
        seen.page.click("#to-live")
        expect(seen.page.locator("#panels svg").first).to_be_visible()


def test_the_live_view_is_friendly_while_nothing_happened(visit: Opener, folder: Path) -> None:
    with serving(folder) as fresh:
        seen = visit("/#live", at=fresh.address)
        expect(seen.page.locator("#idle")).to_be_visible()
        expect(seen.page.locator("#live-state")).to_have_text("idle")
        expect(seen.page.locator("#facts")).to_contain_text(fresh.model)
        assert not seen.page.locator("#panels svg").count()
        seen.shot("live-empty")
        # What happens while one looks appears.
        fresh.chat("Hello", max_tokens=20)
        expect(seen.page.locator("#panels svg").first).to_be_visible()
        expect(seen.page.locator("#idle")).to_be_hidden()
        assert not seen.complaints


def test_the_live_view_draws_what_the_engine_tells(visit: Opener, server: Server) -> None:
    def chat(i: int) -> None:
        server.chat(f"Chat {i}, please.", max_tokens=40 + 15 * i, temperature=0.4, seed=i, leniency=0.5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(chat, range(8)))
    seen = visit()
    seen.ask("Again, please.", temperature=0, max_tokens=60)
    seen.wait()
    server.wait_until_idle()
    told = server.live()
    steps = told["steps"]
    seen.page.click("#to-live")
    seen.page.select_option("#window", "600")
    charts = seen.page.locator("#panels svg.chart")
    expect(charts.first).to_be_visible()
    for chart in ("Batch", "Time of a step", "KV cache", "Guesses of the draft"):
        panel = seen.page.get_by_role("region", name=chart, exact=True)
        drawn = panel.locator("svg path.bar, svg path.curve").evaluate_all(
            "paths => paths.map(p => p.getTotalLength())"
        )
        assert max(drawn) > 20, chart
        assert panel.locator("svg").get_attribute("aria-label")
    # Experts: a cell for each, the shares of a layer add up, and they are the server's.
    cells = seen.page.locator("svg.heat rect title").all_text_contents()
    layers = list(zip(*[s["experts"] for s in steps], strict=True))
    positions = {(i, e): sum(step[e] for step in layer) for i, layer in enumerate(layers) for e in range(len(layer[0]))}
    found = [re.fullmatch(r"layer (\d+), expert (\d+): .* ([\d,]+) positions?", cell) for cell in cells]
    assert {(int(m[1]), int(m[2])): int(m[3].replace(",", "")) for m in found if m} == positions
    expect(seen.page.get_by_role("region", name="Experts")).to_contain_text("Hottest: expert")
    new_tokens = sum(step["new_tokens"] for step in steps)
    expect(seen.page.get_by_role("region", name="Batch", exact=True)).to_contain_text(f"{new_tokens:,} new tokens")
    expect(seen.page.get_by_role("region", name="Time of a step")).to_contain_text("cap of 2 s")
    expect(seen.page.get_by_role("region", name="Cost")).to_contain_text("$0.5")
    assert not seen.complaints
    seen.shot("live-light")


def test_steps_can_be_looked_at_and_read_as_tables(visit: Opener, server: Server) -> None:
    server.chat("Hello there", max_tokens=20)
    steps = server.live()["steps"]
    seen = visit("/#live")
    expect(seen.page.locator("#panels svg").first).to_be_visible()
    expect(seen.page.locator("#step")).to_contain_text(f"Step {steps[-1]['number']} ")
    seen.page.focus("#pick")
    seen.page.keyboard.press("ArrowLeft")
    expect(seen.page.locator("#step")).to_contain_text(f"Step {steps[-2]['number']} ")
    assert seen.page.locator("#pick").get_attribute("aria-valuetext") == seen.page.locator("#step").text_content()
    expect(seen.page.locator("svg rect.chosen").first).to_be_attached()
    seen.page.click("#tables")
    table = seen.page.get_by_role("table").first
    rows = table.locator("tbody tr")
    expect(rows).to_have_count(min(60, len(steps)))
    first = rows.first.locator("th, td").all_text_contents()
    assert first[0] == str(steps[-1]["number"])
    assert first[3:6] == [str(steps[-1][key]) for key in ("prompt_positions", "batch", "new_tokens")]
    seen.page.click("#pause")
    expect(seen.page.locator("#live-state")).to_have_text("paused")
    seen.shot("live-tables")


def test_everything_works_from_the_keyboard(visit: Opener, server: Server) -> None:
    seen = visit()
    page = seen.page
    focused = """() => document.activeElement === document.body
        ? "" : document.activeElement.id || document.activeElement.textContent.trim()"""
    expect(page.locator("#message")).to_be_focused()
    page.focus("#p-temperature")
    page.keyboard.type("0")  # so that the answer does not end by itself
    page.focus("#message")
    page.keyboard.type("two")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("lines")
    expect(page.locator("#message")).to_have_value("two\nlines")
    page.keyboard.press("Enter")
    expect(page.locator(".turn.assistant .body")).not_to_be_empty()
    page.keyboard.press("Escape")
    seen.wait()
    expect(page.locator(".figures")).to_contain_text("stopped")
    expect(page.locator("#message")).to_be_focused()
    # From the top of the page, Tab visits everything, and where it is can be seen.
    page.evaluate("document.activeElement.blur(); getSelection().removeAllRanges()")
    page.reload()
    page.evaluate("document.activeElement.blur()")
    visited: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name = page.evaluate(focused)
        if name in visited:
            break  # once around
        if not name:
            continue  # between the page's end and its beginning
        visited.append(name)
        outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
        assert outline not in ("none", ""), name
    wanted = ["message", "new-chat", "marks", "p-temperature", "p-leniency", "p-key", "to-chat", "to-live"]
    assert [name for name in wanted if name not in visited] == []
    page.focus("#to-live")
    page.keyboard.press("Enter")
    expect(page.locator("#live")).to_be_visible()
    page.focus("#pause")
    page.keyboard.press("Space")
    expect(page.locator("#pause")).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", ["chat", "live"])
def test_names_roles_and_contrast(visit: Opener, scheme: str, view: str) -> None:
    seen = visit(color_scheme=scheme)
    seen.ask("Again, please.", temperature=0, max_tokens=80)
    seen.wait()
    if view == "live":
        seen.page.click("#to-live")
        expect(seen.page.locator("#panels svg").first).to_be_visible()
        expect(seen.page.locator("#live-state")).to_contain_text("idle")
    seen.shot(f"{view}-{scheme}")
    assert seen.page.evaluate((HERE / "accessibility.js").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("view", ["chat", "live"])
def test_a_telephone_needs_no_sideways_scrolling(visit: Opener, server: Server, view: str) -> None:
    seen = visit(width=360)
    seen.ask("Again, please.", temperature=0, max_tokens=40)
    seen.wait()
    seen.page.click(f"#to-{view}")
    if view == "live":
        expect(seen.page.locator("#panels svg").first).to_be_visible()
    assert seen.page.evaluate("document.documentElement.scrollWidth") == 360
    seen.shot(f"{view}-narrow")


def test_nothing_moves_for_who_asked_for_calm(visit: Opener) -> None:
    animations = "() => document.getAnimations().length"
    for motion, moves in (("no-preference", True), ("reduce", False)):
        seen = visit(reduced_motion=motion)
        seen.ask("A long one, please.", temperature=0)
        expect(seen.page.locator(".busy .body > *").first).to_be_attached()
        assert bool(seen.page.evaluate(animations)) == moves
        seen.page.keyboard.press("Escape")
        seen.wait()


HOSTILE = [
    "plain",
    "a <img src=x onerror=alert(1)> & <script>alert(1)</script>",
    "**bold <b>not</b>** and *it* and _it_ and `co*d*e`",
    "- one\n- two\n  - inner\n1. first\n2) second\ntail",
    "# Heading\n\n> a quote\n> of two lines\n\ntext\nmore text",
    "```python\ndef f(x_TD):\n    return '**' # `\n```\nafter",
    "~~~\nopen to the end **x**\n",
    "snake_case_name 2 * 3 * 4 ** 5 ***x*** ____ ```` ` `",
    "[a link](javascript:alert(1)) ![x](//elsewhere/x.png)",
    "\n\n\n",
    "€ 漢字 🙂 \u202e",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stays_text_and_a_stream_ends_as_the_whole(visit: Opener, text: str) -> None:
    """Only the page's own few elements are made, no letter is lost, and drawing piece by piece changes nothing."""
    draw = """async (text) => {
        const { draw } = await import("/markdown.js");
        const made = (texts) => {
            const parent = document.createElement("div");
            for (const text of texts) draw(parent, text, (a, b) => (a < b ? [text.slice(a, b)] : []));
            parent.normalize();
            return parent;
        };
        const whole = made([text]), streamed = made([...text].map((_, i, all) => all.slice(0, i + 1).join("")));
        const names = [...whole.querySelectorAll("*")].map((e) => e.localName);
        return { html: whole.innerHTML, streamed: streamed.innerHTML, words: whole.textContent, names };
    }"""
    found = visit().page.evaluate(draw, text)
    assert found["streamed"] == found["html"]
    allowed = {"p", "pre", "code", "ul", "ol", "li", "strong", "em", "blockquote", *(f"h{i}" for i in range(3, 7))}
    assert set(found["names"]) <= allowed
    letters = re.sub(r"^ {0,3}(```|~~~)\w*$|^ *\d+[.)] ", "", text, flags=re.MULTILINE)
    assert [c for c in found["words"] if c.isalnum()] == [c for c in letters if c.isalnum()]


def test_markdown_becomes_what_it_says(visit: Opener) -> None:
    text = HOSTILE[2] + "\n\n" + HOSTILE[3] + "\n\n" + HOSTILE[5]
    found = visit().page.evaluate(
        """async (text) => {
            const { draw } = await import("/markdown.js");
            const parent = document.createElement("div");
            draw(parent, text, (a, b) => (a < b ? [text.slice(a, b)] : []));
            return [...parent.querySelectorAll("strong, em, code, li")].map((e) => [e.localName, e.textContent]);
        }""",
        text,
    )
    assert found == [
        ["strong", "bold <b>not</b>"],
        ["em", "it"],
        ["em", "it"],
        ["code", "co*d*e"],
        ["li", "one"],
        ["li", "two"],
        ["li", "inner"],
        ["li", "first"],
        ["li", "second\ntail"],
        ["code", "def f(x_TD):\n    return '**' # `"],
    ]


def test_the_server_sends_the_page_safely(server: Server) -> None:
    answer = httpx2.get(server.address + "/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    for name in ("..%2f__init__.py", "nothing.js", "%2e%2e/__init__.py"):
        assert httpx2.get(f"{server.address}/{name}").status_code == 404
