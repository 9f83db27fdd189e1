"""Pictures of report pages as a browser shows and prints them.

    python scripts/report_pictures.py page.html --out folder [--widths 500,900,1400] [--dark] [--print] [--height N]

It drives headless Chromium through its DevTools pipe; pdftoppm (poppler-utils) turns printed pages into pictures, and
Pillow, where it is there, makes the files small. With --docs it makes the pictures of docs/report.md anew from pages
that it writes itself with the tool (--tool).
"""

import argparse
import base64
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BROWSERS = ["chromium", "chromium-browser", "google-chrome", "chrome"]


class Browser:
    """A headless Chromium that is told what to do through a pipe: JSON messages that end with a zero byte."""

    def __init__(self, program):
        self.profile = tempfile.TemporaryDirectory(prefix="report-pictures-")
        to_browser, self.to = os.pipe()
        self.back, from_browser = os.pipe()

        def wire():
            # The browser reads from 3 and writes to 4.
            os.dup2(to_browser, 10)
            os.dup2(from_browser, 11)
            os.dup2(10, 3)
            os.dup2(11, 4)

        self.process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe",
             "--disable-dev-shm-usage", f"--user-data-dir={self.profile.name}", "about:blank"],
            preexec_fn=wire, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.buffer, self.count, self.session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Network.enable")
        self.requests = []

    def message(self):
        while b"\0" not in self.buffer:
            part = os.read(self.back, 1 << 20)
            if not part:
                sys.exit("the browser has ended")
            self.buffer += part
        text, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(text)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message

    def call(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.message()
            if answer.get("id") == self.count:
                if "error" in answer:
                    sys.exit(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def open(self, page, width, dark, opened=()):
        """Loads a page; what it asks for beside itself is an error."""
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.requests = []
        self.call("Page.navigate", url=page.resolve().as_uri())
        while self.message().get("method") != "Page.loadEventFired":
            pass
        outside = [url for url in self.requests if not url.startswith(("data:", page.resolve().as_uri()))]
        if outside:
            sys.exit(f"{page} asks for {outside}")
        for at in opened:
            self.run(f"document.querySelectorAll('details')[{at}].open = true")
        wide = self.run("document.documentElement.scrollWidth")
        if wide > width:
            print(f"{page} is {wide} px wide at a window of {width} px", file=sys.stderr)

    def run(self, script):
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def shot(self, file, top=0, height=None):
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        height = min(height or size["height"], size["height"] - top)
        clip = {"x": 0, "y": top, "width": size["width"], "height": height, "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(shot["data"]))
        shrink(file)

    def pdf(self, file):
        printed = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        file.write_bytes(base64.b64decode(printed["data"]))

    def top_of(self, selector):
        return self.run(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().top + window.scrollY")

    def close(self):
        self.process.terminate()
        self.process.wait()
        self.profile.cleanup()


def shrink(file):
    """Few colours take less room; pages have few but for samples, which are grey."""
    try:
        from PIL import Image
    except ImportError:
        return
    image = Image.open(file).convert("RGB").quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    image.save(file, optimize=True)


def printed(pdf, out, resolution=60):
    """The pages of a PDF file as pictures."""
    if shutil.which("pdftoppm") is None:
        sys.exit("pdftoppm is not there: apt-get install poppler-utils")
    subprocess.run(["pdftoppm", "-r", str(resolution), "-png", str(pdf), str(out)], check=True)
    pages = sorted(out.parent.glob(f"{out.name}-*.png"))
    for page in pages:
        shrink(page)
    return pages


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("report-pictures"))
    parser.add_argument("--widths", default="500,900,1400")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--print", action="store_true", dest="prints")
    parser.add_argument("--height", type=int, help="pixels of each picture, at most")
    args = parser.parse_args()
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        sys.exit("no Chromium is there: apt-get install chromium")
    args.out.mkdir(parents=True, exist_ok=True)
    browser = Browser(program)
    for page in args.pages:
        for width in map(int, args.widths.split(",")):
            for dark in [False, True] if args.dark else [False]:
                browser.open(page, width, dark)
                file = args.out / f"{page.stem}-{width}{'-dark' if dark else ''}.png"
                browser.shot(file, height=args.height)
                print(file, file.stat().st_size)
        if args.prints:
            pdf = args.out / f"{page.stem}.pdf"
            browser.pdf(pdf)
            for file in printed(pdf, args.out / f"{page.stem}-print"):
                print(file, file.stat().st_size)
    browser.close()


if __name__ == "__main__":
    main()
