"""Every planted fault is found and named, what is in order is not complained of, and no file is touched."""

import csv
import hashlib
import io
import json
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from template.config import Backbone, Data
from template.data.audit.checks import audit
from template.data.audit.duplicates import feature_duplicates, near_pairs, perceptual_hashes
from template.data.audit.facts import facts_from_pixels, read_facts
from template.data.audit.findings import Finding, clean_rows
from template.data.decode import decode
from template.data.examples import load_examples
from template.model.backbones import build_backbone

BICUBIC = Image.Resampling.BICUBIC
EXACT, NEAR, CONFLICT = "exact duplicates", "near duplicates", " with different labels"
SCRIPT = Path(__file__).parent.parent / "scripts" / "audit.py"


def scene(seed: int, width: int = 120, height: int = 90) -> Image.Image:
    """Something like a photograph: soft colours, a few edges, a little noise; no two are alike."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(0, 255, (5, 6, 3)).astype(np.uint8)).resize((width, height), BICUBIC)
    pixels = np.asarray(soft).astype(float)
    for _ in range(4):
        top, left = rng.integers(0, height - 20), rng.integers(0, width - 20)
        pixels[top : top + rng.integers(10, 40), left : left + rng.integers(10, 40)] = rng.integers(0, 255, 3)
    return Image.fromarray(np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8))


def saved(image: Image.Image, file: Path, **options) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)
    return file


@pytest.fixture
def tidy(tmp_path) -> Path:
    """Three classes of fifteen images, with nothing wrong."""
    root = tmp_path / "images"
    for number in range(45):
        saved(scene(number), root / ("ant", "bee", "fly")[number % 3] / f"{number:03d}.jpg", quality=90)
    return root


@pytest.fixture
def parted(tmp_path, tidy) -> Path:
    """The same in train/ and test/."""
    for kind in ("ant", "bee", "fly"):
        for file in sorted((tidy / kind).iterdir()):
            target = tidy / ("test" if int(file.stem) > 30 else "train") / kind / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)
        (tidy / kind).rmdir()
    return tidy


def findings(root: Path) -> list[Finding]:
    examples = load_examples(str(root))
    return audit(examples, read_facts(examples))


def test_what_is_in_order_is_not_complained_of(tidy):
    assert {f.severity for f in findings(tidy)} == {"info"}
    assert {f.check for f in findings(tidy)} == {"classes", "image sizes"}


def rotated(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.ROTATE_90)


def mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def of_class(root: Path, change: Callable[[Image.Image], Image.Image], suffix: str = ".jpg", **options) -> None:
    """Change every image of one class."""
    for file in sorted((root / "bee").iterdir()):
        image = change(Image.open(file).convert("RGB"))
        file.unlink()
        saved(image, file.with_suffix(suffix), **options)


FAULTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "cut short": (
        lambda r: (r / "ant/x.jpg").write_bytes((r / "ant/000.jpg").read_bytes()[:900]),
        "unreadable",
        "warning",
    ),
    "empty": (lambda r: (r / "ant/x.jpg").touch(), "unreadable", "warning"),
    "text": (lambda r: (r / "ant/x.jpg").write_text("not an image"), "unreadable", "warning"),
    "web page": (lambda r: (r / "ant/x.jpg").write_text("<!doctype html><p>404"), "unreadable", "warning"),
    "iPhone": (lambda r: (r / "ant/x.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99)), "unreadable", "warning"),
    "link to nowhere": (lambda r: (r / "ant/x.jpg").symlink_to(r / "gone.jpg"), "unreadable", "warning"),
    "loose file": (lambda r: saved(scene(99), r / "x.jpg"), "skipped", "warning"),
    "hidden": (lambda r: saved(scene(99), r / "ant/.x.jpg"), "skipped", "warning"),
    "litter": (lambda r: saved(scene(99), r / "__MACOSX/x.jpg"), "skipped", "warning"),
    "repeated": (lambda r: shutil.copy(r / "ant/000.jpg", r / "ant/x.jpg"), EXACT, "warning"),
    "two labels": (
        lambda r: shutil.copy(r / "ant/000.jpg", r / "bee/x.jpg"),
        "exact duplicates with different labels",
        "error",
    ),
    "recoded": (lambda r: saved(scene(0), r / "ant/x.jpg", quality=40), NEAR, "warning"),
    "resized": (lambda r: saved(scene(0).resize((70, 52)), r / "ant/x.png"), NEAR, "warning"),
    "mirrored": (lambda r: saved(mirrored(scene(0)), r / "ant/x.jpg"), NEAR, "warning"),
    "rotated": (lambda r: saved(rotated(scene(0)), r / "ant/x.jpg"), NEAR, "warning"),
    "brightened": (
        lambda r: saved(scene(0).point(lambda v: min(255, v + 20)), r / "ant/x.jpg"),
        NEAR,
        "warning",
    ),
    "recoded, two labels": (
        lambda r: saved(scene(0), r / "bee/x.png"),
        "near duplicates with different labels",
        "error",
    ),
    "one colour": (lambda r: saved(Image.new("RGB", (90, 90), "teal"), r / "ant/x.png"), "low contrast", "warning"),
    "dark": (lambda r: saved(scene(99).point(lambda v: v // 18), r / "ant/x.png"), "dark", "warning"),
    "bright": (lambda r: saved(scene(99).point(lambda v: 235 + v // 13), r / "ant/x.png"), "bright", "warning"),
    "tiny": (lambda r: saved(scene(99, 40, 30), r / "ant/x.png"), "tiny", "warning"),
    "narrow": (lambda r: saved(scene(99, 500, 90), r / "ant/x.png"), "odd aspect ratio", "warning"),
    "misnamed": (lambda r: saved(scene(99), r / "ant/x.jpg", format="PNG"), "wrong extension", "info"),
    "small class": (
        lambda r: [saved(scene(200 + i), r / "wasp" / f"{i}.jpg") for i in range(3)],
        "few images",
        "warning",
    ),
    "imbalance": (
        lambda r: [saved(scene(300 + i), r / "ant" / f"y{i}.jpg") for i in range(140)],
        "class imbalance",
        "warning",
    ),
    "size gives it away": (lambda r: of_class(r, lambda i: i.resize((160, 120))), "shortcut", "error"),
    "format gives it away": (lambda r: of_class(r, lambda i: i, ".png"), "shortcut", "error"),
    "mode gives it away": (lambda r: of_class(r, lambda i: i.convert("L")), "shortcut", "error"),
    "file size gives it away": (lambda r: of_class(r, lambda i: i, quality=20), "shortcut", "error"),
    "brightness gives it away": (lambda r: of_class(r, lambda i: i.point(lambda v: v // 2)), "shortcut", "warning"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(tidy, fault):
    plant, check, severity = FAULTS[fault]
    plant(tidy)
    found = [f for f in findings(tidy) if f.check == check]
    assert severity in {f.severity for f in found}
    assert all(f.message and f.advice for f in found)
    if check not in {"skipped", "shortcut", "few images", "class imbalance"}:
        examples = load_examples(str(tidy))
        named = {Path(str(examples.ids[row])).stem for f in found for group in f.images for row in group}
        assert "x" in named and named <= {"x", "000"}


@pytest.mark.parametrize(("quality", "check"), [(90, f"{EXACT} across parts"), (40, f"{NEAR} across parts")])
def test_a_training_image_in_the_test_part_is_found(parted, quality, check):
    if quality == 90:
        shutil.copy(parted / "train/ant/000.jpg", parted / "test/ant/x.jpg")
    else:
        saved(scene(0), parted / "test/ant/x.jpg", quality=quality)
    (found,) = [f for f in findings(parted) if f.severity == "error"]
    examples = load_examples(str(parted))
    assert found.check == check
    assert [{str(examples.ids[row]) for row in group} for group in found.images] == [
        {"train/ant/000.jpg", "test/ant/x.jpg"}
    ]


def test_a_root_one_level_too_high_is_noticed(tmp_path, tidy):
    for season in ("spring", "summer"):
        shutil.copytree(tidy, tmp_path / "years" / season)
    (found,) = [f for f in findings(tmp_path / "years") if f.check == "folder level"]
    assert found.severity == "error" and "['ant', 'bee', 'fly']" in found.message and "one level deeper" in found.advice


def test_copies_are_found_and_strangers_are_not():
    """Recall at least 0.95 on recoded and resized copies; no false pair among 44,850."""
    small = np.stack([np.asarray(scene(seed).resize((64, 64))) for seed in range(300)])
    assert near_pairs(small) == []
    copies = []
    for seed in range(100):
        image, out = scene(seed), io.BytesIO()
        if seed % 2:
            image = image.resize((60 + seed % 30, 50 + seed % 20))
        image.save(out, "JPEG", quality=30 + seed % 50)
        copies.append(np.asarray(Image.open(out).resize((64, 64))))
    found = near_pairs(np.concatenate([small[:100], np.stack(copies)]))
    assert len(found) >= 95 and all(b == a + 100 for a, b in found)


def test_a_hash_rotates_with_its_image():
    small = np.stack([np.asarray(scene(seed).resize((64, 64))) for seed in range(5)])
    hashes = perceptual_hashes(small)
    assert hashes.shape == (5, 8) and hashes.dtype == np.uint64
    for turned in (np.rot90(small, axes=(1, 2)), small[:, :, ::-1]):
        distance = np.bitwise_count(perceptual_hashes(turned)[:, :1] ^ hashes).min(axis=1)
        assert distance.max() <= 2
    assert len(np.unique(hashes[:, 0])) == 5


def run(*arguments) -> tuple[int, str, str]:
    with (
        pytest.MonkeyPatch.context() as patched,
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
    ):
        patched.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPT), run_name="__main__")
    return end.value.code, out.getvalue(), err.getvalue()


def contents(root: Path) -> dict[str, str]:
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(root.rglob("*")) if f.is_file()}


def test_the_script_writes_a_page_a_list_and_a_clean_table_and_touches_nothing(parted, tmp_path):
    shutil.copy(parted / "train/ant/000.jpg", parted / "test/ant/x.jpg")
    shutil.copy(parted / "train/bee/001.jpg", parted / "train/fly/x.jpg")
    saved(scene(3), parted / "train/ant/again.jpg", quality=40)
    (parted / "train/ant/<b>broken.jpg").write_text("no")
    before = contents(parted)
    code, said, _ = run(parted, "--out", tmp_path / "audit", "--write-csv", tmp_path / "clean.csv")
    assert code == 1 and contents(parted) == before
    assert "error    exact duplicates with different labels: Exact duplicates with different labels: 1" in said
    listed = {f["check"]: f["images"] for f in json.loads((tmp_path / "audit/audit.json").read_text())}
    assert [sorted(pair) for pair in listed[EXACT + CONFLICT]] == [["train/bee/001.jpg", "train/fly/x.jpg"]]
    page = (tmp_path / "audit/audit.html").read_text()
    assert "train/fly/x.jpg" in page and "data:image/jpeg;base64," in page
    assert "<b>broken" not in page and "&lt;b&gt;broken.jpg" in page
    with (tmp_path / "clean.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = {str(Path(row["path"])).removeprefix("images/") for row in rows}
    gone = {str(f.relative_to(parted)) for f in parted.rglob("*.jpg")} - kept
    lost = {"train/ant/000.jpg", "train/bee/001.jpg", "train/fly/x.jpg", "train/ant/again.jpg"}
    assert gone == lost | {"train/ant/<b>broken.jpg"}
    again = load_examples(str(tmp_path / "clean.csv"))
    assert {f.severity for f in audit(again, read_facts(again))} == {"info"}
    assert sorted(set(again.parts)) == ["test", "train"]


def test_what_is_held_out_stays_in_the_clean_table(parted):
    shutil.copy(parted / "test/ant/033.jpg", parted / "train/ant/aaa.jpg")
    examples = load_examples(str(parted))
    kept = set(examples.ids[clean_rows(examples, audit(examples, read_facts(examples)))])
    assert "test/ant/033.jpg" in kept and "train/ant/aaa.jpg" not in kept


FOUND_WHEN_DECODED = [
    name for name in FAULTS if FAULTS[name][1] not in {"unreadable", "skipped", EXACT, EXACT + CONFLICT}
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FOUND_WHEN_DECODED)
def test_facts_of_decoded_images_lead_to_the_same_findings(tidy, tmp_path, fault):
    """All but what decoding and the split find already; a crop hides nothing of these images that counts."""
    plant, check, severity = FAULTS[fault]
    plant(tidy)
    data = Data(image_size=96, resize="crop", cache=str(tmp_path / "cache"))
    examples, pixels = decode(load_examples(str(tidy)), data)
    found = audit(examples, facts_from_pixels(examples, pixels, np.arange(len(examples))))
    assert severity in {f.severity for f in found if f.check == check}


def test_what_had_to_be_assumed_is_said(tidy, tmp_path):
    """Of an image that would be black, white, or the first of many without a word."""
    scene(99).save(tidy / "ant" / "pages.tif", save_all=True, append_images=[scene(98)])
    deep = np.asarray(scene(97).convert("L")).astype(np.uint16) * 16
    for name in ("bee", "fly"):
        Image.fromarray(deep + len(name)).save(tidy / name / "deep.png")
        deep = deep.T.copy()
    examples = load_examples(str(tidy))
    found, pixels = decode(examples, Data(cache=str(tmp_path / "cache"), image_size=64))
    for used, facts in (
        (examples, read_facts(examples)),
        (found, facts_from_pixels(found, pixels, np.arange(len(found)))),
    ):
        said = {f.message: [used.ids[row] for (row,) in f.images] for f in audit(used, facts) if f.check == "assumed"}
        assert said == {
            "only the first of several pages is used: 1": ["ant/pages.tif"],
            "12 of 16 bits are used and scaled to 8: 2": ["bee/deep.png", "fly/deep.png"],
        }


def test_facts_are_of_the_rows_that_were_asked_for(tidy, tmp_path):
    examples, pixels = decode(
        load_examples(str(tidy)), Data(image_size=64, resize="stretch", cache=str(tmp_path / "c"))
    )
    rows = np.array([7, 3, 30])
    facts, whole = facts_from_pixels(examples.take(rows), pixels, rows), read_facts(examples)
    assert np.array_equal(facts.thumbnails, pixels[rows]) and facts.readable.all()
    for name in ("digest", "format", "mode", "width", "height", "file_size"):
        assert list(getattr(facts, name)) == list(getattr(whole, name)[rows]), name


def test_images_of_few_pixels_are_no_near_duplicates(tmp_path):
    """Nothing that a hash could see tells handwritten digits of 8 x 8 pixels apart."""
    for number in range(40):
        saved(scene(0).resize((8, 8)).rotate(number), tmp_path / "p" / "ab"[number % 2] / f"{number}.png")
    assert not [f for f in findings(tmp_path / "p") if f.check.startswith("near duplicates")]


def test_images_with_similar_features(tidy):
    examples = load_examples(str(tidy))
    features = np.random.default_rng(0).normal(size=(45, 64)).astype(np.float32)
    assert list(feature_duplicates(examples, features)) == []
    features[12] = 3 * features[4] + 0.3 * features[5]
    features[40] = features[20] + 0.3 * features[21]
    (found,) = feature_duplicates(examples, features)
    assert (found.check, found.severity) == ("similar images", "warning") and found.images == [(4, 12), (20, 40)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("template.data.audit.duplicates.COSINE_DISTANCE", 0.0)
        assert list(feature_duplicates(examples, features)) == []


def test_exit_codes(tidy, tmp_path):
    assert run(tidy)[0] == 0
    code, _, said = run(tmp_path / "nowhere")
    assert code == 2 and "does not exist" in said
    code, _, said = run(tidy, "--backbone.nam=tiny")
    assert code == 2 and "Did you mean 'backbone.name'?" in said


@pytest.fixture
def weights(tmp_path) -> Path:
    keras.utils.set_random_seed(0)
    build_backbone(Backbone(name="tiny", weights="none"), 32).save_weights(tmp_path / "tiny.weights.h5")
    return tmp_path / "tiny.weights.h5"


def test_wrong_labels_come_first_among_label_issues(tmp_path, weights):
    """Colours tell the classes; three images lie in the wrong folder."""
    wrong = {7, 23, 41}
    for number in range(60):
        tint, kind = number % 2, (number % 2) ^ (number in wrong)
        pixels = np.asarray(scene(number, 48, 48)).astype(float) * 0.4
        pixels[..., 2 * tint] += 120
        saved(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), tmp_path / "p" / "ab"[kind] / f"{number}.png")
    settings = ["--backbone.name=tiny", f"--backbone.weights={weights}", "--data.image_size=32"]
    settings += [f"--data.cache={tmp_path / 'cache'}", "--augment.hflip=false"]
    code, said, _ = run(tmp_path / "p", "--labels", "--out", tmp_path / "audit", *settings)
    found = {f["check"]: f["images"] for f in json.loads((tmp_path / "audit/audit.json").read_text())}
    assert {int(Path(group[0]).stem) for group in found["label issues"][:3]} == wrong
    assert code in {0, 1} and "probability below 50 % (tiny), lowest first" in said


def test_names_of_any_kind_are_audited_and_those_that_a_table_cannot_hold_are_named(tidy, tmp_path):
    folder = tidy / "\u732b\n"
    (tidy / "ant").rename(folder)
    try:
        (folder / "000.jpg").rename(folder / os.fsdecode(b"\xff.jpg"))
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    code, said, _ = run(tidy, "--out", tmp_path / "audit", "--write-csv", tmp_path / "clean.csv")
    assert code in {0, 1}
    assert "not in the CSV: 1 images whose names are not UTF-8, such as" in said and "\\udcff.jpg" in said
    before, again = load_examples(str(tidy)), load_examples(str(tmp_path / "clean.csv"))
    assert len(again) == len(before) - 1 and again.class_names == before.class_names
    assert all(image.exists() for image in again.images)
