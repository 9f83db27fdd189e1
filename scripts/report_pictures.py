#!/usr/bin/env python3
"""Take screenshots of report pages as a browser shows and prints them.

    report_pictures.py page.html --out folder [--widths 500,900,1400] [--dark] [--print] [--height N]
    report_pictures.py --docs --tool target/release/onnx-diffprune [--pages folder]

Headless Chromium is controlled through its DevTools pipe. pdftoppm (poppler-utils) converts printed pages to images,
and Pillow, if installed, reduces their size. A page that loads anything from outside, or is wider than its window, is
an error. With --docs, the script makes the pages and images of docs/report.md; pages that are already in the folder are
reused.
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
FASHION, DIT = "fixtures/ddpm_fashion16", "fixtures/dit_fashion16"
ON_FASHION = f"--data {FASHION}/train_images.npy --scheduler-config {FASHION}/scheduler_config.json"
ON_DIT = f"--data {DIT}/train_images.npy --scheduler-config {DIT}/scheduler_config.json"

# The pages of docs/report.md, with the commands that write them. {} is the folder.
PAGES = {
    "refitted.html": f"{FASHION}.onnx {{}}/pruned.onnx --ratio 0.3 --timesteps 20 {ON_FASHION} --report {{}}/refitted.html",
    "tuned.html": f"finetune {{}}/pruned.onnx {{}}/tuned.onnx --teacher {FASHION}.onnx --steps 200 {ON_FASHION} "
                  "--report {}/tuned.html",
    "unfitted.html": f"{DIT}.onnx {{}}/dit.onnx --ratio 0.4 --criterion taylor --no-refit --timesteps 8 {ON_DIT} "
                     "--report {}/unfitted.html",
    "pipeline.html": "fixtures/pipelines/sd_tiny {}/slim --components unet,vae_decoder --ratio 0.3 --criterion magnitude "
                     "--no-refit --report {}/pipeline.html",
    "many.html": "{}/many.onnx {}/many-cut.onnx --ratio 0.3 --criterion magnitude --no-verify --report {}/many.html",
    "evaluation.html": f"evaluate {{}}/pruned.onnx {{}}/tuned.onnx --original {FASHION}.onnx --data {FASHION}/heldout_images.npy "
                       f"--scheduler-config {FASHION}/scheduler_config.json --samples 32 --steps 20 --count 64 "
                       "--report {}/evaluation.html",
}
MANY = "--widths 32,64,128,128 --attention 3 --layers 5 --heads 4 --context 64"

# The images: page, width, whether dark, the heading at which they begin, and their height.
PICTURES = {
    "report-500.png": ("refitted.html", 500, False, None, 1650),
    "report-900.png": ("refitted.html", 900, False, None, 1750),
    "report-1400.png": ("refitted.html", 1400, False, None, 1500),
    "report-dark.png": ("refitted.html", 900, True, None, 1750),
    "report-unfitted.png": ("unfitted.html", 900, False, None, 1500),
    "report-tuned.png": ("tuned.html", 900, False, None, 1350),
    "report-pipeline.png": ("pipeline.html", 900, False, None, 1550),
    "report-many.png": ("many.html", 900, False, "Channel groups", 1000),
    "report-evaluation.png": ("evaluation.html", 900, True, None, 1450),
}

BROWSERS = ["chromium", "chromium-browser", "google-chrome", "chrome"]


class Browser:
    """A headless Chromium that is controlled through a pipe with JSON messages that end with a zero byte."""

    def __init__(self, program):
        self.profile = tempfile.TemporaryDirectory(prefix="report-pictures-")
        to_browser, self.to = os.pipe()
        self.back, from_browser = os.pipe()

        def wire():
            # The browser reads from file descriptor 3 and writes to 4.
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
                sys.exit("the browser ended unexpectedly")
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

    def open(self, page, width, dark):
        """Loads a page. Anything that it loads from outside is an error."""
        if not page.is_file():
            sys.exit(f"{page} does not exist")
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.requests = []
        self.call("Page.navigate", url=page.resolve().as_uri())
        while self.message().get("method") != "Page.loadEventFired":
            pass
        outside = [url for url in self.requests if not url.startswith(("data:", page.resolve().as_uri()))]
        if outside:
            sys.exit(f"{page} loads {outside} from outside")
        wide = self.run("document.documentElement.scrollWidth")
        if wide > width:
            sys.exit(f"{page} is {wide} px wide in a window of {width} px")

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

    def top_of(self, heading):
        found = f"[...document.querySelectorAll('h2')].find(of => of.textContent == {json.dumps(heading)})"
        return max(0, self.run(f"{found}.getBoundingClientRect().top + window.scrollY") - 16)

    def close(self):
        self.process.terminate()
        self.process.wait()
        self.profile.cleanup()


def shrink(file):
    """Reduces the colours to save space. Pages have few colours, except for samples, which are grey."""
    try:
        from PIL import Image
    except ImportError:
        return
    image = Image.open(file).convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    image.save(file, optimize=True)


def printed(pdf, out, resolution=60):
    """Converts the pages of a PDF file to images."""
    if shutil.which("pdftoppm") is None:
        sys.exit("pdftoppm was not found: apt-get install poppler-utils")
    subprocess.run(["pdftoppm", "-r", str(resolution), "-png", str(pdf), str(out)], check=True)
    pages = sorted(out.parent.glob(f"{out.name}-*.png"))
    for page in pages:
        shrink(page)
    return pages


def docs(browser, tool, folder):
    """Makes the pages and images of docs/report.md."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "many.onnx").exists() and not (folder / "many.html").exists():
        maker = ROOT / "scripts/make_sd_unet.py"
        subprocess.run([sys.executable, maker, folder / "many.onnx", *MANY.split()], check=True)
    for page, command in PAGES.items():
        if not (folder / page).exists():
            print(f"onnx-diffprune {command.replace('{}', str(folder))}", flush=True)
            words = [word.replace("{}", str(folder.resolve())) for word in command.split()]
            subprocess.run([tool.resolve(), *words, "--quiet"], check=True, cwd=ROOT)
    out = ROOT / "docs/images"
    for name, (page, width, dark, heading, height) in PICTURES.items():
        browser.open(folder / page, width, dark)
        browser.shot(out / name, top=browser.top_of(heading) if heading else 0, height=height)
        print(name, (out / name).stat().st_size)
    browser.open(folder / "refitted.html", 900, False)
    browser.pdf(folder / "refitted.pdf")
    pages = printed(folder / "refitted.pdf", folder / "page")
    for at, page in enumerate(pages[:2], 1):
        shutil.copyfile(page, out / f"report-print-{at}.png")
        print(f"report-print-{at}.png", page.stat().st_size, f"of {len(pages)} pages")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=pathlib.Path, metavar="page.html")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("report-pictures"))
    parser.add_argument("--widths", default="500,900,1400")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--print", action="store_true", dest="prints")
    parser.add_argument("--height", type=int, help="maximum height of each image in pixels")
    parser.add_argument("--docs", action="store_true", help="make the pages and images of docs/report.md")
    parser.add_argument("--tool", type=pathlib.Path, default=ROOT / "target/release/onnx-diffprune")
    parser.add_argument("--pages", type=pathlib.Path, default=ROOT / "target/report-pages", dest="folder")
    args = parser.parse_args()
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        sys.exit("Chromium was not found: apt-get install chromium")
    browser = Browser(program)
    if args.docs:
        docs(browser, args.tool, args.folder)
        browser.close()
        return
    args.out.mkdir(parents=True, exist_ok=True)
    for page in args.files:
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
