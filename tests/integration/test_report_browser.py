"""A report in a real browser: it fits every screen, asks for nothing, is read in light, in dark, in print and without scripts."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from report_pages import give_function, make_sweep
from run_folders import make_run, make_unfinished_run, run_config
from searches import Searches

from qllm_exp.config import schema
from qllm_exp.results.__main__ import main
from qllm_exp.results.report import credit, functions
from qllm_exp.search.report import search_report

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
TASKS = ("8x8-2p-2f-coop-2s", "10x10-3p-3f-2s", "climbing")
# The lowest contrast of any text with what is behind it (WCAG 2.1), and the text that has it.
CONTRAST = """() => {
  const rgb = (colour) => (colour.match(/[\\d.]+/g) ?? []).map(Number);
  const light = (colour) => {
    const [r, g, b] = rgb(colour).map((value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if ((rgb(colour)[3] ?? 1) === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  let worst = [99, ""];
  for (const element of document.body.querySelectorAll("*:not(svg, svg *, script)")) {
    const own = [...element.childNodes].filter((node) => node.nodeType === 3 && node.data.trim());
    if (!own.length || !element.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, own[0].data.trim()];
  }
  return worst;
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of runs of three tasks, methods with long names, every kind of unfinished run, and two functions, one with its credit."""
    folder = tmp_path_factory.mktemp("report") / "runs"
    for at, task in enumerate(TASKS):
        env = "matrix" if task == "climbing" else "lbf"
        for seed in range(5):
            for mixer in ("qmix", "vdn", "tfcaf"):
                run = run_config(
                    mixer, seed, task, env, train=schema.TrainConfig(learning_rate=3e-4 if mixer == "vdn" else 5e-4)
                )
                done = make_run(folder, run, 0.3 * at + seed / 10, program=1 if mixer == "tfcaf" else None)
                (done / "versions.json").write_text(json.dumps({"qllm_exp": "0.1.0", "commit": "a" * 40}))
                if mixer == "tfcaf" and env == "lbf":
                    give_function(done, env, task)
        make_run(folder, run_config("vdn", 0, task, env, train=schema.TrainConfig(learning_rate=1e-5)), 0.7)
    playing = make_unfinished_run(
        folder, run_config("tfcaf", 9, "climbing", "matrix"), "failed", "RuntimeError: " + "no" * 300
    )
    give_function(playing)
    for seed, state in enumerate(("interrupted", "queued", "", "running"), 10):
        make_unfinished_run(folder, run_config("qmix", seed), state)
    alive = make_unfinished_run(folder, run_config("qmix", 20), "running")
    (alive / "status.json").write_text(json.dumps({"state": "running", "host": "elsewhere", "heartbeat": time.time()}))
    names = [*sorted(path.name for path in folder.iterdir()), "lbf_8x8-2p-2f-coop-2s_q-learning_qmix_s30_12345678"]
    made = make_sweep(folder / "a_sweep_with_a_rather_long_name", names, "python -m qllm_exp -m " + "seed=0,1,2," * 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functions, "credit_figure", credit._draw)  # not each in a process of its own, which imports torch
        assert main(["report", str(made)]) == 0
    return made / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = shutil.which("chromium")
    assert executable, "chromium is not installed: run tests/install_browser.sh"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield started
        started.close()


def opened(browser: Browser, report: Path, width: int = 1280, scheme: str = "light", scripts: bool = True) -> Page:
    page = browser.new_page(
        viewport={"width": width, "height": 800},
        color_scheme=scheme,  # type: ignore[arg-type]
        java_script_enabled=scripts,
        reduced_motion="reduce",
    )
    page.goto(report.as_uri())
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_every_screen_and_everything_is_seen(browser: Browser, report: Path, scheme: str) -> None:
    page = opened(browser, report, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((element) => (element.open = true))")
    wider = """() => [...document.querySelectorAll("main *:not(svg *)")].filter((element) => !element.closest(".scroll, pre.source")
        && element.getBoundingClientRect().right > innerWidth + 1).map((element) => element.outerHTML.slice(0, 80))"""
    for width in (360, 768, 1280, 1600):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(wider) == [], "but for what scrolls in a box of its own"
        boxes = [figure.bounding_box() for figure in page.locator("svg").all()]
        assert len(boxes) == 9 and all(box and box["width"] > 250 and box["height"] > 60 for box in boxes)
        shown = "[...document.querySelectorAll('svg text')].every((element) => element.getBBox().width > 0)"
        assert page.evaluate(shown)
        ratio, where = page.evaluate(CONTRAST)
        assert ratio >= 4.5, where
    page.close()


def test_nothing_is_cut_off_beside_an_empty_margin(browser: Browser, report: Path) -> None:
    """A table scrolls only once it fills the page, and figures shrink; only those of credit, which have scenes, scroll as well."""
    page = opened(browser, report)
    page.evaluate("document.querySelectorAll('details').forEach((element) => (element.open = true))")
    cut_off = """() => [...document.querySelectorAll(".scroll")].filter((box) => box.scrollWidth > box.clientWidth + 1)
        .map((box) => [box.getAttribute("aria-label"), !!box.closest(".card"), innerWidth - box.getBoundingClientRect().right])"""
    for width in (360, 400, 1000, 1280, 1400, 1800):
        page.set_viewport_size({"width": width, "height": 800})
        for label, is_figure, margin in page.evaluate(cut_off):
            assert margin <= 33 and (not is_figure or "Credit of each agent" in label), (width, label, margin)
    page.close()


def test_a_table_of_eight_tasks_fits_a_laptop_and_half_of_a_phone(browser: Browser, tmp_path: Path) -> None:
    tasks = [
        "8x8-2p-2f-coop-2s",
        "10x10-3p-3f-2s",
        "15x15-4p-3f-2s",
        "15x15-4p-5f",
        "15x15-3p-5f",
        "10x10-3p-3f-coop-2s",
    ]
    for place, task in enumerate([*tasks, "8x8-2p-2f-coop", "15x15-4p-3f-coop"]):
        for mixer in ("qmix", "vdn", "qplex", "qtran", "qatten", "wqmix", "none", "tfcaf"):
            for seed, rate in enumerate((3e-4, 5e-4) if mixer == "vdn" else (5e-4, 5e-4)):
                run = run_config(mixer, seed, task, train=schema.TrainConfig(learning_rate=rate))
                make_run(tmp_path / "runs", run, place - 100.0 * seed, program=1 if mixer == "tfcaf" else None)
    assert main(["report", "--no-credit", str(tmp_path / "runs"), "-o", str(tmp_path / "report.html")]) == 0
    page = opened(browser, tmp_path / "report.html", 1400)
    widths = "[...document.querySelectorAll('.scroll > table:not(.plain)')].map((table) => table.getBoundingClientRect().width)"
    comparison = page.evaluate(widths)[0]
    assert 900 < comparison <= page.locator("main").evaluate("(element) => element.clientWidth")
    page.set_viewport_size({"width": 400, "height": 800})
    heads = page.locator("#comparison table").first.locator("thead th").all()
    boxes = [head.bounding_box() for head in heads[:3]]
    assert all(box and box["x"] + box["width"] <= 384 for box in boxes), "the label and two columns are seen"
    page.close()


def test_it_asks_for_nothing_and_complains_of_nothing(browser: Browser, report: Path) -> None:
    page = browser.new_page()
    requests, messages = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(report.as_uri())
    for summary in page.locator("summary").all():
        summary.click()
    page.wait_for_load_state("networkidle")
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()] and messages == []
    page.close()


def test_injected_scripts_would_not_run(browser: Browser, report: Path, tmp_path: Path) -> None:
    text = report.read_text().replace(
        "</main>", "<img src=x onerror='document.title=1'><script>document.title=1</script></main>"
    )
    changed = tmp_path / "changed.html"
    changed.write_text(text)
    page = opened(browser, changed)
    page.wait_for_timeout(300)
    assert page.title() == "a_sweep_with_a_rather_long_name: report"
    page.close()


@pytest.mark.parametrize("width", [360, 1280])
def test_the_contents_lead_to_their_sections(browser: Browser, report: Path, width: int) -> None:
    page = opened(browser, report, width)
    links = page.locator("nav a").all()
    assert len(links) >= 8
    for link in links:
        link.click()
        target = page.locator(str(link.get_attribute("href")))
        box = target.bounding_box()
        at_end = page.evaluate("scrollY + innerHeight >= document.documentElement.scrollHeight - 2")
        assert box and (abs(box["y"]) < 30 or (at_end and 0 <= box["y"] < 800))
        assert target.locator("h2").is_visible()
    page.close()


def test_the_contents_are_beside_the_page_on_wide_screens(browser: Browser, report: Path) -> None:
    page = opened(browser, report)
    for width, beside in ((360, False), (1280, True), (1600, True)):
        page.set_viewport_size({"width": width, "height": 800})
        nav, heading = page.locator("nav ol").bounding_box(), page.locator("h1").bounding_box()
        assert nav and heading and (nav["x"] + nav["width"] <= heading["x"]) == beside
    page.close()


def test_runs_are_sorted_by_their_heads_and_are_there_without_scripts(browser: Browser, report: Path) -> None:
    bare = opened(browser, report, scripts=False)
    rows = bare.locator("table.sortable tbody tr").count()
    assert rows == 55 and bare.locator("table.sortable button").count() == 0
    bare.locator("summary", has_text="runs").last.click()
    assert bare.locator("table.sortable").is_visible()
    bare.close()
    page = opened(browser, report)
    page.locator("details", has=page.locator("table.sortable")).locator("summary").click()
    head = page.locator("table.sortable thead button", has_text="final")
    for direction, turned in (("ascending", False), ("descending", True)):
        head.click()
        cells = page.locator("table.sortable tbody tr td:nth-child(5)").all_inner_texts()
        numbers = [float(cell) for cell in cells if cell != "-"]
        assert numbers == sorted(numbers, reverse=turned) and len(numbers) == 48 and len(cells) == rows
        assert page.locator("th[aria-sort]").get_attribute("aria-sort") == direction
    page.close()


def test_in_the_dark_the_page_is_dark_and_figures_stay_on_a_light_ground(browser: Browser, report: Path) -> None:
    for scheme, dark in (("light", False), ("dark", True)):
        page = opened(browser, report, scheme=scheme)
        shades = {}
        for name in ("body", ".card"):
            ground = page.locator(name).first.evaluate("(element) => getComputedStyle(element).backgroundColor")
            shades[name] = sum(map(int, re.findall(r"\d+", ground)[:3]))
        assert (shades["body"] < 120) == dark and shades[".card"] > 690
        page.close()


def test_it_prints_with_all_that_is_folded(browser: Browser, report: Path) -> None:
    page = opened(browser, report)
    pages = re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4"))
    assert len(pages) >= 8
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    heights = page.evaluate(
        "[...document.querySelectorAll('details > :not(summary)')].map((element) => element.getBoundingClientRect().height)"
    )
    assert len(heights) >= 4 and min(heights) > 50, "unfolded by the style sheet alone"
    page.emulate_media(media="print", color_scheme="dark")
    ground = page.locator("body").evaluate("(element) => getComputedStyle(element).backgroundColor")
    assert ground == "rgb(255, 255, 255)", "nobody prints on black"
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_a_search_fits_every_screen_and_its_tree_leads_to_the_table(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    directory = Searches(tmp_path, monkeypatch).run("tfcaf.search.tune=gradient")
    file = tmp_path / "search.html"
    file.write_text(search_report(directory.path, credit=False))
    page = opened(browser, file, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((element) => (element.open = true))")
    for width in (360, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ratio, where = page.evaluate(CONTRAST)
        assert ratio >= 4.5, where
    boxes = page.locator("svg.tree a").all()
    assert len(boxes) == 12
    for box in boxes:
        texts = [text.bounding_box() for text in box.locator("text").all()]
        outer = box.locator("rect").first.bounding_box()
        assert outer and all(text and text["x"] + text["width"] <= outer["x"] + outer["width"] for text in texts)
    boxes[-1].click()
    row = page.locator(str(boxes[-1].get_attribute("href"))).bounding_box()
    assert row and 0 <= row["y"] < 800
    page.close()
