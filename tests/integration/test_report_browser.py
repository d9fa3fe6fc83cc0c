"""The pages in a real headless Chromium: what a reader sees, in light and dark, at two widths, by keyboard and on paper."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from curlora_lab import config
from curlora_lab.integrity import sealed_record
from curlora_lab.report import write_comparison, write_report
from curlora_lab.run import run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is part of the dev extra")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH"),
]

SMALL = (
    "train_rows=64", "eval_rows=48", "epochs=1", "trainer.accelerator=cpu", "display=quiet",
    "probe.probes.builtin.source.sizes.test=20", "probe.probes.builtin.shift_positions=64",
)  # fmt: skip
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&lt;b&gt;"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three finished runs, two of them at different learning rates, their comparison, and one record full of markup."""
    folder = tmp_path_factory.mktemp("pages")
    config.register()
    for name, *given in (
        ("curlora", "adapter=curlora"),
        ("lora", "adapter=lora"),
        ("faster", "adapter=curlora", "lr=5e-2"),
    ):
        overrides = [*SMALL, *given, f"name={name}", f"output_dir={folder}"]
        with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
            composed = compose("train", overrides=overrides)
        run(config.validate(composed), overrides=overrides)
    record = json.loads((folder / "demo" / "curlora" / "results.json").read_text())
    text = json.dumps(record).replace('"paraphrase"', json.dumps(f"paraphrase{EVIL}")).replace("builtin", f"b{EVIL}")
    poisoned = json.loads(text)
    poisoned |= {"name": EVIL, "status": "failed", "message": EVIL, "overrides": [EVIL]}
    (folder / "evil").mkdir()
    (folder / "evil" / "results.json").write_text(json.dumps(sealed_record(poisoned)))
    write_report(folder / "evil")
    runs = [folder / "demo" / name for name in ("curlora", "lora", "faster")]
    write_comparison([*runs, folder / "evil"], folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Reader:
    """One page, opened and drawn; everything that it complains about or asks for is kept."""

    def __init__(self, browser: Any, path: Path, *, width: int = 1280, scheme: str = "light") -> None:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = context.new_page()
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.goto(path.as_uri())
        for _ in range(600):
            if self.ask("[...document.querySelectorAll('.plot')].every((plot) => plot.dataset.drawn)"):
                break
            time.sleep(0.1)

    def _asked(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            self.said.append(f"request: {url}")

    def ask(self, script: str) -> Any:
        return self.page.evaluate(script)


PAGES = ("demo/curlora/report.html", "comparison.html", "evil/report.html")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_page_is_drawn_without_complaint(folder: Path, browser: Any, name: str, width: int, scheme: str) -> None:
    reader = Reader(browser, folder / name, width=width, scheme=scheme)
    assert reader.said == []
    plots = reader.ask("document.querySelectorAll('.plot').length")
    assert plots >= 6
    assert reader.ask("document.querySelectorAll('.plot .svg-container').length") == plots
    assert reader.ask("document.getElementById('no-charts').hidden")
    assert reader.ask("document.documentElement.scrollWidth - innerWidth") <= 0, (
        "the page itself must not scroll sideways"
    )
    dark = reader.ask("getComputedStyle(document.body).backgroundColor") == "rgb(16, 20, 24)"
    assert dark is (scheme == "dark")
    assert len(reader.page.screenshot(full_page=True)) > 50_000


def test_response_curves_are_drawn_where_a_number_was_swept(folder: Path, browser: Any) -> None:
    reader = Reader(browser, folder / "comparison.html")
    assert reader.ask("document.querySelectorAll('a[href=\\'#response\\']').length") == 1
    section = "document.querySelector('section[aria-labelledby=response]')"
    titles = reader.ask(f"[...{section}.querySelectorAll('figure')].map((one) => one.textContent)")
    assert sum("by lr" in title for title in titles) >= 4  # average, learning, forgetting, drift of the language model
    points = reader.ask(
        f"[...{section}.querySelectorAll('.plot')].map((one) => one.querySelectorAll('.scatterlayer .point').length)"
    )
    assert sum(drawn >= 2 for drawn in points) >= 4, points


#: Boxes of labels and marks in each drawing: which labels meet another one, or a mark, by more than a hair.
MEETING = """() => {
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  const found = [];
  for (const plot of document.querySelectorAll(".plot")) {
    const named = (one) => `${plot.id || plot.getAttribute("aria-label")}: ${one.textContent.trim()}`;
    const labels = [...plot.querySelectorAll(".annotation")].filter((one) => one.textContent.trim());
    const boxes = labels.map((one) => one.getBoundingClientRect());
    const marks = [...plot.querySelectorAll(".scatterlayer path.point")].map((one) => one.getBoundingClientRect());
    labels.forEach((one, k) => {
      labels.slice(k + 1).forEach((other, j) => {
        if (meet(boxes[k], boxes[k + 1 + j])) found.push(`${named(one)} meets the label ${other.textContent.trim()}`);
      });
      if (marks.some((mark) => meet(boxes[k], mark))) found.push(`${named(one)} meets a mark`);
    });
  }
  return found;
}"""


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [1280, 400])
def test_labels_meet_neither_each_other_nor_a_mark(folder: Path, browser: Any, name: str, width: int) -> None:
    reader = Reader(browser, folder / name, width=width)
    assert reader.page.evaluate(MEETING) == []
    if name != "comparison.html":
        twice = "one.after(one.cloneNode(true))"
        reader.ask(f"document.querySelectorAll('.plot .annotation').forEach((one) => {twice})")
        assert reader.page.evaluate(MEETING), "two labels on top of each other are not seen"


def test_what_a_reader_must_see_first_comes_first(folder: Path, browser: Any) -> None:
    reader = Reader(browser, folder / "demo" / "curlora" / "report.html")
    top = "document.querySelector('{}').getBoundingClientRect().top"
    assert reader.ask(top.format(".warnings")) < reader.ask(top.format(".cards")) < reader.ask(top.format(".heat"))
    broken = Reader(browser, folder / "evil" / "report.html")
    assert broken.ask(top.format(".failed-box")) < broken.ask(top.format(".warnings"))
    assert EVIL in broken.ask("document.querySelector('.failed-box').textContent")


def test_theme_is_switched_by_keyboard_and_remembered(folder: Path, browser: Any) -> None:
    reader = Reader(browser, folder / "demo" / "curlora" / "report.html")
    ink = "document.querySelector('.plot .xtick text').style.fill"
    before = reader.ask(ink)
    reader.page.keyboard.press("Tab")
    reader.page.keyboard.press("Tab")
    assert reader.ask("document.activeElement.id") == "theme"
    reader.page.keyboard.press("Enter")
    assert reader.ask("document.documentElement.dataset.theme") == "dark"
    assert reader.ask("document.activeElement.getAttribute('aria-label')") == "switch to light colours"
    assert reader.ask(ink) != before
    reader.page.reload()
    assert reader.ask("document.documentElement.dataset.theme") == "dark"
    assert reader.said == []


def test_copy_buttons_copy(folder: Path, browser: Any) -> None:
    reader = Reader(browser, folder / "demo" / "curlora" / "report.html")
    reader.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    reader.page.click("button[data-copy=command]")
    time.sleep(0.3)
    assert reader.ask("document.querySelector('button[data-copy=command]').textContent") == "copied"
    assert reader.ask("document.getElementById('said').textContent") == "copied to the clipboard"
    assert reader.ask("navigator.clipboard.readText()").startswith("python train.py train_rows=64")


def test_tables_sort_by_keyboard(folder: Path, browser: Any) -> None:
    reader = Reader(browser, folder / "comparison.html")
    rows = "[...document.querySelector('table.sortable').tBodies[0].rows]"
    column = f"{rows}.map((row) => parseFloat(row.cells[6].dataset.value))"
    reader.page.focus("table.sortable thead th:nth-child(7) button")
    reader.page.keyboard.press("Enter")
    assert reader.ask(column) == sorted(reader.ask(column))
    reader.page.keyboard.press("Enter")
    assert reader.ask(column) == sorted(reader.ask(column), reverse=True)
    assert reader.ask("document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "descending"


#: Contrast of every visible text against what lies behind it (WCAG 2.2), the lowest of each kind of element.
CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const parse = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const over = (top, below) => top.slice(0, 3).map((c, k) => c * top[3] / 255 + below[k] * (1 - top[3] / 255));
  const ground = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest("script, .hidden, .skip, [hidden], .modebar") || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const drawn = element instanceof SVGElement;
    if (drawn && element.closest(".heatmaplayer, .plot .hm")) continue; // plotly chooses black or white by the cell
    const behind = ground(drawn ? element.closest(".plot") : element);
    const text = over(parse(drawn ? style.fill : style.color), behind);
    const [low, high] = [light(text), light(behind)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    const name = `${element.tagName}.${element.getAttribute("class")} ${element.textContent.trim().slice(0, 30)}`;
    if (ratio < (large ? 3 : 4.5)) found.push(`${name}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(folder: Path, browser: Any, name: str, scheme: str) -> None:
    reader = Reader(browser, folder / name, scheme=scheme)
    assert reader.page.evaluate(CONTRAST) == []


def test_everything_that_acts_has_a_name(folder: Path, browser: Any) -> None:
    reader = Reader(browser, folder / "comparison.html")
    nameless = reader.ask(
        "[...document.querySelectorAll('button, a[href], summary, [role=img], [role=group]')]"
        ".filter((one) => !one.closest('.modebar') && !(one.getAttribute('aria-label') || one.textContent).trim()).length"
    )
    assert nameless == 0


def test_a_dark_page_prints_light_and_fits_the_paper(folder: Path, browser: Any) -> None:
    reader = Reader(browser, folder / "demo" / "curlora" / "report.html", scheme="dark")
    reader.ask(
        "window.onbeforeprint = () => { window.seen = ["
        "document.querySelector('.plot .xtick text').style.fill,"
        "Math.max(...[...document.querySelectorAll('.main-svg')].map((one) => one.clientWidth))] }"
    )
    pdf = reader.page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    fill, widest = reader.ask("window.seen")
    assert fill == "rgb(28, 33, 39)"
    assert widest <= 660
    assert "paper" not in reader.ask("document.documentElement.className")
    assert reader.said == []


def test_a_browser_that_cannot_unpack_shows_the_tables(folder: Path, browser: Any) -> None:
    page = browser.new_context().new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto((folder / "demo" / "curlora" / "report.html").as_uri())
    time.sleep(0.5)
    assert "cannot unpack gzip" in page.evaluate("document.getElementById('no-charts').textContent")
    assert page.evaluate("[...document.querySelectorAll('details.numbers')].every((one) => one.open)")
    assert page.evaluate("document.querySelectorAll('.plot').length") == 0
