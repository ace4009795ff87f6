"""Draw the images of README and documentation: generated data and scikit-learn's digits, photographed in a browser.

    pip install -c constraints.txt -e ".[serve,browser]"
    python docs/make_images.py --work FOLDER          # minutes; what is in FOLDER already is not made again

Needs a chromium. Runs, audit and comparison come to lie in FOLDER, the images in docs/images/. Look at each before you
commit it.
"""

import argparse
import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
WIDTH = 1000
"""Of a page, in pixels."""
COLORS = 128
"""Of an image: pages have few, and a small file is soon loaded."""


def main() -> None:
    """Make what is not there yet, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for runs and data")
    work = parser.parse_args().work.resolve()
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("Expected a chromium to draw with. Received none: apt-get install chromium")
    IMAGES.mkdir(exist_ok=True)
    run = run_of(work, "runs")
    photos = made(work / "pictures", lambda: write_pictures(work / "pictures"))
    made(work / "audit", lambda: call(work, "audit", photos.name, "--out", "audit", expected=1))
    digits = made(work / "handwriting", lambda: write_digits(work / "handwriting"))
    compared = (f"--data.path={digits.name}", "--data.image_size=96", "--augment.hflip=false", "--out", "networks.png")
    made(work / "networks.png", lambda: call(work, "choose_backbone", *compared))
    save(Image.open(work / "networks.png"), "networks")
    few = run_of(work, "few", *compared[:3], "--stages=[]")
    made(work / "several", lambda: train_several(work, digits.name))
    made(work / "runs.html", lambda: call(work, "runs", "several", "--html", "runs.html"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 760})
        page.goto((run / "report.html").as_uri())
        photograph(page, "report")
        page.goto((few / "report.html").as_uri())
        page.get_by_role("heading", name="Least confident predictions").evaluate("e => scrollTo(0, e.offsetTop - 16)")
        photograph(page, "errors")
        page.goto((work / "runs.html").as_uri())
        photograph(page, "runs")
        page.goto((work / "audit" / "audit.html").as_uri())
        photograph(page, "audit")
        with_server(work, run, lambda address: draw_server(page, address))
        browser.close()
    for file in sorted(IMAGES.iterdir()):
        print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1000:.0f} kB")


def made(place: Path, make: Callable[[], object]) -> Path:
    """The place, which `make` makes if it is not there."""
    if not place.exists():
        make()
    return place


def run_of(work: Path, name: str, *settings: str) -> Path:
    """The folder of a run in this folder of runs."""
    return next(made(work / name, lambda: call(work, "train", f"--runs={name}", *settings)).iterdir())


def train_several(work: Path, data: str) -> None:
    """Runs from scratch that differ in their augmentation."""
    recipe = ROOT / "configs" / "digits.toml"
    for policy in ("none", "light", "heavy"):
        settings = (f"--config={recipe}", f"--data.path={data}", "--data.val_fraction=0.3", "--data.test_fraction=0.3")
        call(work, "train", "--runs=several", *settings, f"--augment.policy={policy}", "--stages.0.epochs=20")


def call(work: Path, script: str, *arguments: str, expected: int = 0) -> None:
    """Call a script in the folder."""
    work.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / f"{script}.py"), *arguments], cwd=work, check=False)
    if done.returncode != expected:
        sys.exit(f"scripts/{script}.py ended with {done.returncode}")


def save(image: Image.Image, name: str) -> None:
    """As a PNG of few colors, and no wider than a page."""
    image = image.convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    image = image.quantize(COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    image.save(IMAGES / f"{name}.png", optimize=True)


def photograph(page, name: str) -> None:
    """What is seen of a page without scrolling."""
    page.wait_for_timeout(500)
    save(Image.open(io.BytesIO(page.screenshot())), name)


def with_server(work: Path, run: Path, use: Callable[[str], None]) -> None:
    """Serve a run while it is used, by its address."""
    line = [sys.executable, str(ROOT / "scripts" / "serve.py"), "--run", str(run), "--port", "0"]
    line += ["--collect", str(work / "kept")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=work) as process:
        try:
            said = next(line for line in process.stdout if "http://" in line)
            use("http://" + said.partition("http://")[2].split()[0])
        finally:
            process.terminate()


def draw_server(page, address: str) -> None:
    """Three digits, of which the newest is explained."""
    digits = load_digits()
    page.goto(address)
    for number, row in enumerate((31, 3, 5), start=1):  # a 9, a 3, a 5
        file = io.BytesIO()
        pixels = (digits.images[row] * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).resize((160, 160), Image.Resampling.BICUBIC).save(file, "PNG")
        picture = {"name": f"{digits.target[row]}.png", "mimeType": "image/png", "buffer": file.getvalue()}
        page.set_input_files("#choose", [picture])
        page.locator("#status").filter(has_text=f"{number} of {number} ").wait_for()
    page.locator(".card .why").first.click()
    page.wait_for_timeout(3000)
    page.evaluate("scrollTo(0, 0)")
    photograph(page, "page")


def write_digits(folder: Path) -> None:
    """The first thirty of each digit, as files."""
    digits = load_digits()
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for row in np.flatnonzero(digits.target == label)[:30]:
            pixels = (digits.images[row] * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC).save(folder / str(label) / f"{row}.png")


def write_pictures(folder: Path) -> None:
    """Drawn discs, rings and crosses with what an audit is for: copies, a broken file, a class that is darker."""
    generator = np.random.default_rng(0)
    for kind in ("cross", "disc", "ring"):
        (folder / kind).mkdir(parents=True)
        for number in range(30):
            image = draw(kind, generator, brightness=0.55 if kind == "ring" else 1.0)
            Image.fromarray(image).save(folder / kind / f"{kind}-{number:02d}.png")
    shutil.copy(folder / "cross" / "cross-00.png", folder / "disc" / "disc-copy.png")
    Image.open(folder / "disc" / "disc-01.png").resize((96, 96)).save(folder / "disc" / "small.jpg", quality=40)
    Image.open(folder / "ring" / "ring-02.png").save(folder / "cross" / "recoded.jpg", quality=60)
    (folder / "ring" / "broken.jpg").write_bytes((folder / "disc" / "small.jpg").read_bytes()[:300])
    (folder / "disc" / "notes.jpg").write_text("not an image", encoding="utf-8")


def draw(kind: str, generator: np.random.Generator, brightness: float, size: int = 160) -> np.ndarray:
    """A disc, ring or cross of random color, place and size on a striped ground. uint8 [size, size, 3]."""
    y, x = np.mgrid[:size, :size] - generator.uniform(0.3, 0.7, (2, 1, 1)) * size
    away, radius, angle = np.hypot(x, y), generator.uniform(0.15, 0.3) * size, generator.uniform(0, np.pi)
    shape = {
        "disc": away < radius,
        "ring": abs(away - radius) < size / 16,
        "cross": (abs(abs(x) - abs(y)) < size / 12) & (away < radius),
    }
    ground = 25 * np.sin((x * np.cos(angle) + y * np.sin(angle)) / generator.uniform(3, 12))[..., None]
    bright, dark = generator.integers(140, 256, 3), generator.integers(30, 110, 3)
    image = np.where(shape[kind][..., None], bright, dark + ground) + generator.normal(0, 10, (size, size, 3))
    return np.clip(brightness * image, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
