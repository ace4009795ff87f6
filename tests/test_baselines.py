"""What a run is held against is what it says it is, and a forecast adds up."""

import dataclasses

import numpy as np
import pytest
from conftest import image

from template.config import TTA, Augment, Backbone, Config, Data, Head, Stage, Train
from template.data.dataset import ArrayDataset, eval_dataset
from template.diagnose import baselines, forecast, preflight
from template.diagnose.forecast import TRACING
from template.model.backbones import build_backbone
from template.model.build import attach, build
from template.model_selection.auto import count_forward_passes, count_probes, head_inputs, probe_features, probe_views
from template.model_selection.depth import SMALL, depths
from template.progress import Timer
from template.train import linear_probe as probe
from template.train.features import FeatureCache

SIZE, CLASSES = 32, 3


def coloured(n: int, seed: int, labels: np.ndarray | None = None) -> ArrayDataset:
    """Noise whose mean colour tells the class."""
    generator, labels = np.random.default_rng(seed), np.arange(n) % CLASSES if labels is None else labels
    pixels = generator.integers(0, 150, (n, SIZE, SIZE, 3)).astype(np.uint8)
    pixels[np.arange(n), :, :, labels] += 80
    return eval_dataset(pixels, np.arange(n), labels)


def shapes(n: int, seed: int) -> ArrayDataset:
    """Stripes and discs of any colour."""
    rng, kinds = np.random.default_rng(seed), ("across", "disc", "upright")
    pixels = np.stack([image(kinds[i % 3], rng, SIZE) for i in range(n)])
    return eval_dataset(pixels, np.arange(n), np.arange(n) % 3)


@pytest.fixture
def store(tmp_path, monkeypatch) -> FeatureCache:
    """For learning curves, of regressions with fewer strengths to choose from."""
    monkeypatch.setattr(probe, "STRENGTHS", probe.STRENGTHS[::4])
    return FeatureCache(tmp_path, 2**30, 16, Timer())


PRETRAINED = Config(
    data=Data(image_size=SIZE), backbone=Backbone(name="tiny", weights="given.h5"), train=Train(batch_size=16),
    augment=Augment(policy="light", hflip=True), stages=(),
)  # fmt: skip


def test_colours_alone_tell_colours_and_not_shapes():
    assert baselines.color_baseline(coloured(60, 0), coloured(30, 1)) == 30
    assert baselines.color_baseline(shapes(60, 0), shapes(60, 1)) < 35


@pytest.mark.slow
def test_a_small_network_tells_shapes(monkeypatch, shallow):
    monkeypatch.setattr(baselines, "STEPS", 30)
    assert baselines.scratch_baseline(shapes(60, 0), shapes(60, 1), Config(train=Train(batch_size=12))) > 45


@pytest.mark.slow
def test_what_is_known_is_counted(store):
    model, train = build(Backbone(name="tiny", weights="none"), Head(), SIZE, [1] * CLASSES), coloured(500, 0)
    kernel = model.get_layer("logits").kernel
    kernel.assign(np.zeros(kernel.shape))
    model.get_layer("logits").bias.assign([0.0, 5.0, 0.0])  # always says 1
    right, asked = baselines.train_accuracy(
        model, train, Config(backbone=Backbone(name="tiny", weights="none"), stages=()), store
    )
    rows = np.linspace(0, 499, baselines.FEW).astype(int)
    assert (right, asked) == (int((train.labels[rows] == 1).sum()), baselines.FEW)


def test_the_learning_curve_falls_where_there_is_something_to_learn_and_takes_what_is_stored(store):
    base = build_backbone(Backbone(name="tiny", weights="none"), SIZE)
    noisy = np.arange(120) % CLASSES
    train, val = coloured(120, 0, noisy), coloured(60, 1)
    train = ArrayDataset(train.read, train.labels, "train")
    val = ArrayDataset(val.read, val.labels, "val")
    model = attach(base, PRETRAINED.backbone, PRETRAINED.head, [1] * CLASSES)
    probe_features(base, PRETRAINED, [train], store)  # what training looks at, mirror images included
    before = len(set(store.folder.iterdir()))
    sizes, errors = baselines.learning_curve(model, base, PRETRAINED, train, val, store)
    assert sizes == [12, 24, 48, 96, 120]
    assert errors[-1] <= errors[0] and errors[-1] < 0.1
    assert len(set(store.folder.iterdir())) == before + 2, (
        "new are the validation images as they are, below the boundary and at the head"
    )
    head_inputs(model, PRETRAINED, probe_views(val, PRETRAINED), store)
    assert len(set(store.folder.iterdir())) == before + 4, "a refit finds these, and needs their mirror images"


def test_more_images_are_of_more_patients():
    """A tenth of the images of all patients would promise nothing of patients to come."""
    source = dataclasses.replace(coloured(60, 0), groups=np.arange(60) // 6)
    order = baselines._drawn(source, 0, 3)
    assert sorted(order) == list(range(60))
    patients = source.groups[order].reshape(10, 6)
    assert (patients == patients[:, :1]).all() and patients[:, 0].tolist() != sorted(patients[:, 0])
    alone = dataclasses.replace(source, groups=np.arange(60)[::-1])
    expected = np.random.default_rng([3, 0]).permutation(60)
    for same in (alone, coloured(60, 0)):
        np.testing.assert_array_equal(baselines._drawn(same, 0, 3), expected)


@pytest.mark.slow
def test_a_rare_class_is_in_every_draw(store):
    base = build_backbone(Backbone(name="tiny", weights="none"), SIZE)
    labels = np.array([0] * 60 + [1] * 30 + [2] * 2)
    model = attach(base, PRETRAINED.backbone, PRETRAINED.head, [1] * CLASSES)
    sizes, _ = baselines.learning_curve(model, base, PRETRAINED, coloured(92, 0, labels), coloured(30, 1), store)
    assert sizes[0] == 6 + 3 + 2 and sizes[-1] == 92


# forecast


def test_looks_counts_what_choose_and_begin_send_through_the_network():
    assert count_forward_passes(PRETRAINED, 300) == 600, "as they are and mirrored"
    still = Config(backbone=PRETRAINED.backbone, augment=Augment(hflip=False))
    assert count_forward_passes(still, 300) == 300
    assert count_forward_passes(Config(backbone=PRETRAINED.backbone, tta=TTA(center_zoom=True)), 300) == 1200
    voting = Config(
        backbone=PRETRAINED.backbone, augment=Augment(hflip=False), head=Head(feature_levels="auto", power_norm="auto"),
        data=Data(image_size="auto", resize="auto"), tta=TTA(center_zoom="auto"),
    )  # fmt: skip
    assert count_forward_passes(voting, 300) == 2 * 300 + 3 * 300, (
        "closer too, another size, two other ways to a square"
    )
    assert count_forward_passes(voting, 3000) == 2 * 3000 + 5 * 1000, (
        "a thousand vote, and are no part that training looks at"
    )
    assert count_forward_passes(Config(backbone=Backbone(name="tiny", weights="none")), 300) == 0
    assert count_probes(voting) == 1 + 1 + 2 + 1 + 1 + 1 + 1, "the first option of each once, the others, and a refit"
    mirrored = dataclasses.replace(voting, augment=Augment())
    assert count_probes(mirrored) == 1 + count_probes(voting), (
        "the head is of mirror images too, which vote for nothing"
    )
    assert count_forward_passes(mirrored, 300) == 4 * 300 + 3 * 300


def test_every_network_that_auto_compares_takes_its_own_time(monkeypatch):
    monkeypatch.setattr(forecast, "seconds_per_image", lambda network, *_: network.count_params())
    expected = build_backbone(Backbone(name="tiny", weights="none"), SIZE).count_params() * 40  # unmirrored
    other = Backbone(name="tiny", weights="none")
    monkeypatch.setattr(preflight, "build_backbone", lambda _, size: build_backbone(other, size))
    assert preflight._of_candidate(PRETRAINED, PRETRAINED.backbone, coloured(40, 0)) == expected


COUNTS = {"train": 100, "val": 50, "test": 30}


def test_a_forecast_adds_up():
    """Of three blocks one is trained: a third of each step, forward and, for twice as long, backward."""
    stage = Stage(unfreeze=1, epochs=10, cached_augmentations=4)
    config = Config(backbone=PRETRAINED.backbone, augment=Augment(hflip=False), stages=(stage,), tta=TTA(hflip=True))
    seconds = forecast.forecast(config, COUNTS, 0.2)
    assert seconds == {
        "probe": pytest.approx(0.2 * 100),
        "stage 1": pytest.approx(TRACING + 0.2 * (4 * 100 * 2 / 3 + 10 * (3 * 100 + 50) / 3)),
        "refit": pytest.approx(TRACING + 0.2 * (4 * 50 * 2 / 3 + 10 * 3 * 150 / 3)),
        "evaluation": pytest.approx(0.2 * (2 * (50 + 30) + 100)),
    }
    by_name = dataclasses.replace(config, stages=(dataclasses.replace(stage, unfreeze="block3"),))
    assert forecast.forecast(by_name, COUNTS, 0.2) == seconds, "the top one of three"
    everything = forecast.forecast(dataclasses.replace(config, stages=(Stage(unfreeze="all", epochs=1),)), COUNTS, 0.2)
    assert everything["stage 1"] == pytest.approx(TRACING + 0.2 * (3 * 100 + 50))
    assert everything["evaluation"] == pytest.approx(0.2 * (2 * (50 + 50 + 30) + 100)), "validation images twice"
    assert "refit" not in forecast.forecast(config, COUNTS | {"train": 6000}, 0.2)
    pair = dataclasses.replace(config, train=Train(teachers=("a run", "another")))
    with_teachers = forecast.forecast(pair, COUNTS, 0.2)
    assert with_teachers["stage 1"] - seconds["stage 1"] == pytest.approx(0.2 * 2 * 4 * 100), "each sees each view"
    assert with_teachers["refit"] - seconds["refit"] == pytest.approx(0.2 * 2 * 4 * 50), "and those of validation now"


def test_what_races_takes_time_and_little_of_it_on_small_images():
    """A race may end after the first of three folds, each of which trains as many steps as the stage."""
    config = Config(backbone=Backbone(name="mobilenet"), data=Data(image_size=2 * SMALL), augment=Augment(hflip=False))
    for images in (100, 400):
        *top, half = depths(config, images)
        assert [stage.unfreeze for stage in (*top, half)] == ([6] if images == 100 else [2, 6]), "of 13 blocks"

        def race(stage: Stage, above: float, views: int, images: int = images) -> float:
            return (1 - above) * views * images + above * 0.5 * (stage.epochs * 3 * 3 * images + images)

        expected = race(half, 6 / 13, 1 + min(half.cached_augmentations or 99, half.epochs)) / 4
        expected += sum(race(stage, 2 / 13, 1) for stage in top)
        seconds = forecast.forecast(config, COUNTS | {"train": images}, 0.2)
        shallowest = dataclasses.replace(config, stages=(*top, half)[:1])
        chosen = forecast.forecast(shallowest, COUNTS | {"train": images}, 0.2)
        assert seconds["stage 1"] == pytest.approx(chosen["stage 1"] / 2), "if it is chosen"
        assert seconds["depth"] == pytest.approx((1 + len(top)) * TRACING + 0.2 * expected)


def test_a_run_says_what_is_left_once_it_has_sent_images_through_its_network(store):
    config, clock = Config(backbone=PRETRAINED.backbone, augment=Augment(hflip=False), stages=()), store.clock
    in_all, left = (forecast.seconds_left(config, COUNTS, store, begun) for begun in (False, True))
    assert in_all() is None and left() is None
    clock.seconds["features"], clock.counts["features"] = 22.0, 100
    passes = forecast.forecast(config, COUNTS, 0.2)
    assert in_all() == pytest.approx(forecast.OTHERS + sum(passes.values()))
    assert left() == pytest.approx(forecast.OTHERS + sum(passes.values()) - passes["probe"]), "the probe is fitted"
    clock.seconds["features"] = 1.0
    quick = sum(forecast.forecast(config, COUNTS, 0.005).values())
    assert in_all() == pytest.approx(forecast.OTHERS + quick), "half may be tracing"
    staged = dataclasses.replace(config, stages=(Stage(unfreeze=1, epochs=3),))
    told = forecast.seconds_left(staged, COUNTS, store)()
    assert told == pytest.approx(forecast.OTHERS + sum(forecast.forecast(staged, COUNTS, 0.005).values()))


def test_where_no_probe_begins_the_stages_say_what_is_left(store):
    store.clock.seconds["features"], store.clock.counts["features"] = 20.0, 100  # of what is looked at in the end
    scratch = Config(backbone=Backbone(name="tiny", weights="none"), stages=(Stage(unfreeze="all", epochs=3),))
    assert forecast.seconds_left(scratch, COUNTS, store)() is None


def test_while_the_network_is_to_be_chosen_nothing_is_foretold(store):
    store.clock.seconds["features"], store.clock.counts["features"] = 20.0, 100
    assert forecast.seconds_left(Config(backbone=Backbone(name="auto")), COUNTS, store)() is None


def test_images_without_labels_pass_through_the_network_too():
    plain, more = (forecast.forecast(PRETRAINED, counts, 0.2) for counts in (COUNTS, COUNTS | {"unlabelled": 70}))
    assert more["probe"] == pytest.approx(plain["probe"] + 0.2 * 2 * 70), "and mirrored"
    assert {**more, "probe": 0} == {**plain, "probe": 0}


def test_what_an_earlier_run_computed_says_how_long_it_took_and_is_not_done_again(store):
    config = Config(backbone=PRETRAINED.backbone, augment=Augment(hflip=False), stages=())
    told, passes = forecast.seconds_left(config, COUNTS, store), forecast.forecast(config, COUNTS, 0.2)
    store.spared["computed by this run"] = (0, 0.0)
    assert told() is None
    store.spared["found"] = (100, 20.0)
    assert told() == pytest.approx(forecast.OTHERS + sum(passes.values()) - 100 * 0.2)
    later = forecast.seconds_left(config, COUNTS, store, begun=True)()
    rest = sum(passes.values()) - passes["probe"]
    assert later == pytest.approx(forecast.OTHERS + rest), "what was found by then is of the probe"
