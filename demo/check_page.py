"""Tests the page in a real Chromium without a network, as a visitor uses it, and takes screenshots.

    python -m demo.check_page --output_dir page_pictures
    python -m demo.check_page --output_dir page_pictures --model runs/mine/best --chromium /usr/bin/chromium

It needs `pip install playwright` and a Chromium (the system's, or `playwright install chromium`). It enrolls two
classes by upload and one with a fake camera, classifies clips, removes classes and clips, uploads bad files, and opens
the page as a second visitor. It ends with an error if the page misbehaves, requests anything from another host, makes
the browser report an error, or leaves an upload behind.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from clipfsar.options import REQUIRED, option, parse_options
from clipfsar.page.visitor import Examples
from demo.page import REPOSITORY, render_examples

try:
    from playwright.sync_api import Page, expect, sync_playwright
except ImportError:
    sys.exit("error: this check needs playwright: `pip install playwright`.")

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
FIRST, SECOND, STRANGER = "red star growing", "green star bouncing", "yellow moon hopping"


@dataclass
class Arguments:
    output_dir: str = option(REQUIRED, "Folder for the screenshots.")
    model: str | None = option(None, "Model of the page; default: the page's own.")
    chromium: str | None = option(shutil.which("chromium"), "Browser; default: the system's, otherwise playwright's.")


def start_page(folder: Path, model: str | None) -> tuple[subprocess.Popen, str]:
    """Starts the page; returns its process, which keeps its files in `folder`, and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "demo.page", "--port", str(port), *(["--model", model] if model else [])]
    page = subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | {"TMPDIR": str(folder)})
    address = f"http://127.0.0.1:{port}/"
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return page, address
        except OSError:
            if page.poll() is not None:
                break
            time.sleep(0.5)
    page.kill()
    raise RuntimeError("The page did not start; see its output above.")


def add_to_class(page: Page, class_name: str, clips: list[Path | str]):
    page.get_by_placeholder("opening a door").fill(class_name)
    page.locator("#clips input[type=file]").set_input_files(clips)
    expect(page.locator("#clips")).to_contain_text(Path(clips[-1]).suffix)
    page.get_by_role("button", name="Add to class").dblclick()  # as many people do


def ask(page: Page, clip: Path | str):
    clear = page.locator("#query").get_by_label("Clear")
    if clear.count():
        clear.click()
    page.locator("#query input[type=file]").set_input_files(clip)


def uploads_in(folder: Path) -> list[Path]:
    # Gradio also leaves an empty file for each upload that it passes on.
    files = folder.glob("clipfsar_page_*/uploads/**/*")
    return [path for path in files if path.is_file() and path.stat().st_size]


def wait_for_uploads(folder: Path, number: int):
    for _ in range(100):
        if len(uploads_in(folder)) == number:
            return
        time.sleep(0.2)
    raise AssertionError(f"{number} uploads should be left, but there are: {uploads_in(folder)}")


class Check:
    """One visitor's way through the page, at one window width."""

    def __init__(self, page: Page, clips, folder: Path, pictures: Path):
        self.page, self.clips, self.folder, self.pictures = page, clips, folder, pictures
        self.name = "wide" if page.viewport_size["width"] > 600 else "narrow"
        self.broken = folder / "broken.mp4"
        self.broken.write_bytes(b"not a video")

    def run(self, address: str):
        self.page.goto(address)
        steps = (
            self.start,
            self.enroll,
            self.change_mode,
            self.ask_about_others,
            self.review,
            self.remove,
            self.record,
        )
        for step in steps:
            step()

    def picture(self, step: str):
        self.page.wait_for_timeout(700)  # for transitions
        self.page.screenshot(path=self.pictures / f"{self.name}_{step}.png", full_page=True)

    def start(self):
        page = self.page
        expect(page.get_by_text("No class yet")).to_be_visible()
        expect(page.locator("#answer")).to_contain_text("at least two classes")
        self.picture("1_start")
        page.get_by_role("button", name="Add to class").click()
        expect(page.locator(".problem")).to_contain_text("The class has no name yet")
        add_to_class(page, FIRST, [self.broken])
        expect(page.locator(".problem")).to_contain_text("Cannot read video 'broken.mp4'")
        self.picture("2_problem")
        page.locator("#clips").get_by_label("Clear").click()
        wait_for_uploads(self.folder, 0)

    def enroll(self):
        page, clips = self.page, self.clips
        add_to_class(page, FIRST, clips.classes[FIRST])
        expect(page.get_by_text(f"Added 2 clips to “{FIRST}”.")).to_be_visible()
        expect(page.locator("#answer")).to_contain_text("So far there is only")
        add_to_class(page, SECOND, clips.classes[SECOND][:1])
        expect(page.locator(".class-title")).to_have_text([FIRST, SECOND])
        expect(page.locator("#answer")).to_contain_text("Now add the clip")
        ask(page, clips.queries[SECOND])
        expect(page.locator(".verdict")).to_have_text(SECOND)
        expect(page.get_by_alt_text(f"alignment with {SECOND}")).to_be_visible()
        expect(page.locator(".frames img").first).to_be_visible()
        self.picture("3_answer")

    def change_mode(self):
        page = self.page
        page.get_by_label("both").check()
        expect(page.locator("#answer")).to_contain_text("the class names count")
        page.get_by_label("class names").check()
        expect(page.locator("#answer")).to_contain_text("Decided by the class names alone")
        expect(page.locator(".why")).to_have_count(0)
        page.get_by_label("example clips").check()
        expect(page.get_by_alt_text(f"alignment with {SECOND}")).to_be_visible()

    def ask_about_others(self):
        page = self.page
        page.get_by_label("Allow “none of these”").check()
        page.get_by_role("button", name=STRANGER).click()
        expect(page.locator(".verdict")).to_have_text("none of these")
        self.picture("4_none_of_these")
        ask(page, self.broken)
        expect(page.locator(".problem")).to_contain_text("Cannot read video 'broken.mp4'")
        expect(page.locator("#answer")).to_contain_text("Now add the clip")
        expect(page.locator(".verdict")).to_have_count(0)
        expect(page.locator("#query[data-unplayable]")).to_be_visible()  # said there, and not as an error
        expect(page.get_by_text("Video not playable")).to_have_count(0)

    def review(self):
        page, clips = self.page, self.clips
        add_to_class(page, FIRST, [clips.classes[SECOND][1]])  # a wrong label
        expect(page.get_by_text(f"Added 1 clip to “{FIRST}”.")).to_be_visible()
        page.get_by_role("button", name="Review").click()
        expect(page.locator("#review")).to_contain_text("of new clips would be recognised")
        expect(page.locator("#review tbody tr")).to_have_count(2)
        self.picture("5_review")

    def remove(self):
        page = self.page
        page.get_by_role("button", name="Remove class").last.click()
        expect(page.locator(".class-title")).to_have_text([FIRST])
        expect(page.locator("#review tbody tr")).to_have_count(0)  # it was of other classes
        for number_left in (2, 0):  # the only clip of a class has no button
            page.get_by_role("button", name="✕").first.click()
            expect(page.get_by_role("button", name="✕")).to_have_count(number_left)

    def record(self):
        page = self.page
        page.get_by_text("Record a clip").click()
        page.get_by_placeholder("opening a door").fill("sitting at the computer")
        recorder = page.locator("#recording")
        recorder.get_by_text("Click to Access Webcam").click()
        recorder.get_by_text("Record").click()
        page.wait_for_timeout(2500)
        self.picture("6_recording")
        recorder.get_by_text("Stop").click()
        expect(recorder.locator("video[src]")).to_be_visible()
        page.get_by_role("button", name="Add to class").click()
        expect(page.get_by_text("Added 1 clip to “sitting at the computer”.")).to_be_visible()
        self.picture("7_end")


def main(arguments: Arguments):
    pictures = Path(arguments.output_dir)
    pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        folder = Path(folder)
        clips = Examples.from_folder(render_examples(folder / "clips"))
        process, address = start_page(folder, arguments.model)
        try:
            options = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--no-sandbox"]
            browser = playwright.chromium.launch(executable_path=arguments.chromium, args=options)
            problems = []

            def visit(size):
                context = browser.new_context(viewport=size, permissions=["camera"])
                page = context.new_page()
                page.set_default_timeout(20_000)
                page.on("pageerror", lambda error: problems.append(str(error)))
                page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
                page.on(
                    "request",
                    lambda request: (
                        None
                        if request.url.startswith((address, "data:", "blob:"))
                        else problems.append(f"asked for {request.url}")
                    ),
                )
                return page

            expect.set_options(timeout=30_000)
            for size in (WIDE, NARROW):
                page = visit(size)
                Check(page, clips, folder, pictures).run(address)
                overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
                assert overflow <= 0, f"The page is {overflow} pixels wider than the window of {size['width']}."
                other = visit(size)
                other.goto(address)
                expect(other.get_by_text("No class yet")).to_be_visible()  # no access to the first visitor's classes
                other.context.close()
                page.context.close()
                wait_for_uploads(folder, 0)
            browser.close()
        finally:
            process.terminate()
            process.wait(30)
        assert not problems, "\n".join(problems)
        assert not list(folder.glob("clipfsar_page_*")), "The page left its folder behind."
    print(f"The page passed all checks. Look at the screenshots in {pictures}.")


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
