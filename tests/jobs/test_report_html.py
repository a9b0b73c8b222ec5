"""report.html: one file that a browser opens offline, and the page that keeps itself fresh."""

import json
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import browser
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from jobs import report
from jobs.reporting import report_html

needs_browser = pytest.mark.skipif(bool(browser.MISSING), reason=f"needs {browser.MISSING}, which .ci/run installs")
PATIENCE_S = 120

HARD = """# <b>Title</b>

Named `<script>alert(1)</script>`.

| run | ELBO | note |
| --- | --- | --- |
| `b` | -1,200.5 | last |
| `c` | 3e-2 | first |
| `d` | | none |
| `a` | -70 | middle |

## Same

[a file](data.csv), [elsewhere](https://example.org/x.wav.html), [gone](gone.csv) and [a sound](one%20sound.wav)

## Same

```
<unk> & <s>
```
"""


@pytest.fixture
def hard(tmp_path: Path) -> Path:
    """A page with all that is easily got wrong, and what it links to."""
    (tmp_path / "data.csv").write_text("1,2\n")
    soundfile.write(tmp_path / "one sound.wav", np.zeros(4000, np.int16), 16_000)
    (tmp_path / "hard.html").write_text(report_html.page(HARD, tmp_path))
    return tmp_path / "hard.html"


@needs_browser
def test_a_browser_opens_the_report_offline(trained: Path, hard: Path, tmp_path: Path) -> None:
    """Offline: nothing is asked for, all is seen and heard, on a wide screen and on a phone; and it follows a run."""
    runs = [shutil.copytree(trained, tmp_path / f"runs/{name}") for name in ("zeta", "alpha")]
    out = tmp_path / "out"
    report.write(runs, out, say=lambda line: None, baselines=False)
    moved = shutil.move(out / "report.html", tmp_path / "alone.html")  # what it links to stays behind
    with browser.opened() as driver:
        for scheme, width in (("light", 1200), ("dark", 1200), ("light", 360)):
            browser.look_as(driver, width=width, scheme=scheme)
            driver.get(moved.as_uri())
            assert driver.execute_script("return document.documentElement.scrollWidth") <= width, "it scrolls sideways"
            ground, text = driver.execute_script(
                "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
            )
            assert (_brightness(ground) > _brightness(text)) == (scheme == "light")
        _wait(driver, "return [...document.querySelectorAll('audio')].every((sound) => sound.duration > 0)")
        seen = driver.execute_script("return [...document.images].map((image) => image.naturalWidth)")
        assert len(driver.find_elements(By.TAG_NAME, "audio")) == 4 and len(seen) >= 6 and min(seen) > 0
        _sorted_by(driver, "run", ["alpha", "zeta"], ["zeta", "alpha"])
        assert set(browser.requests(driver)) == {moved.as_uri()} and not browser.complaints(driver)

        driver.get(hard.as_uri())
        assert driver.title == "<b>Title</b>" and "<script>alert(1)</script>" in driver.page_source.replace(
            "&lt;", "<"
        ).replace("&gt;", ">")
        _sorted_by(driver, "ELBO", ["b", "a", "c", "d"], ["c", "a", "b", "d"])
        assert not driver.find_elements(By.TAG_NAME, "b") and not browser.complaints(driver)
        _follows(driver, runs[0], tmp_path)


def _follows(driver: browser.webdriver.Chrome, run: Path, tmp_path: Path) -> None:
    """`--watch` serves the page to this machine alone, and shows in an open browser what a run writes."""
    (run / "result.json").unlink()
    command = [sys.executable, "-u", "-m", "jobs", "report", run, "--out", tmp_path / "live", "--watch", "--every", "1"]
    command += ["--no-baselines"]
    heeds_ctrl_c = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # ignored below a shell's background job
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heeds_ctrl_c) as server:
        assert server.stdout is not None
        try:
            browser.requests(driver)
            address = next(
                found[0] for line in server.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+/", line))
            )
            driver.get(address)
            assert "9 updates" not in driver.page_source and "comes when all are over" in driver.page_source
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": 9, "valid/elbo_nats": 1e6, "valid/kl_nats_per_frame": 0.5}) + "\n")
            _wait(driver, "return document.body.textContent.includes('1,000,000.0 nats')")
            assert {url.removeprefix(address) for url in browser.requests(driver)} == {"", "version"}
            assert not browser.complaints(driver)
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(PATIENCE_S) == 0 and (tmp_path / "live/report.html").is_file()


def _sorted_by(driver: browser.webdriver.Chrome, column: str, *orders: list[str]) -> None:
    """One click on a column's name sorts by it, another the other way round."""
    button = driver.find_element(
        By.XPATH, f"//table[contains(@class, 'sorts')]//th/button[normalize-space()='{column}']"
    )
    table = button.find_element(By.XPATH, "ancestor::table")
    for order in orders:
        button.click()
        assert [row.text for row in table.find_elements(By.CSS_SELECTOR, "tbody td:first-child")] == order


def _wait(driver: browser.webdriver.Chrome, script: str) -> None:
    WebDriverWait(driver, PATIENCE_S).until(lambda driver: driver.execute_script(script), script)


def _brightness(colour: str) -> int:
    return sum(int(value) for value in re.findall(r"\d+", colour)[:3])


class _Reader(HTMLParser):
    """The ids, and what each element links to, of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "src"):
                self.links.setdefault(tag, []).append(value or "")


def _read(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    return reader


def test_files_are_inside_and_other_links_stay(hard: Path) -> None:
    links = _read(hard.read_text()).links
    assert links["audio"][0].startswith("data:audio/") and len(links["audio"]) == 1
    assert [link.partition(";")[0] for link in links["a"][-3:]] == [
        "data:text/csv",
        "https://example.org/x.wav.html",
        "gone.csv",
    ]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=12), max_size=6))
def test_no_two_headings_have_the_same_id(headings: list[str]) -> None:
    ids = _read(report_html.page("\n\n".join(f"## {text}" for text in ["", *headings]), Path("/nowhere"))).ids
    assert len(set(ids)) == len(ids) == len(headings) + 1


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_html_in_a_report_is_text(text: str) -> None:
    """Names of runs and files, words of a vocabulary: nothing of them becomes an element or a script."""
    empty, page = (
        report_html.page(markdown, Path("/nowhere")) for markdown in ("", f"<script>{text}<img src=x onerror=1>")
    )
    assert page.count("<script") == empty.count("<script") and "<img" not in page


def test_only_this_machine_by_name_may_read_the_live_page() -> None:
    import http.client

    from jobs.reporting import live_page

    with live_page.served(0) as (page, address):
        page.show(lambda version: "hello")
        port = int(address.rsplit(":", 1)[1].strip("/"))
        for host, path, status in (
            (f"localhost:{port}", "/", 200),
            (f"127.0.0.1:{port}", "/version", 200),
            (f"127.0.0.1:{port}", "/etc/passwd", 404),
            ("evil.example", "/", 404),
        ):
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", path, headers={"Host": host})
            answer = connection.getresponse()
            assert (answer.status, b"hello" in answer.read()) == (status, path == "/" and status == 200), (host, path)
            connection.close()
