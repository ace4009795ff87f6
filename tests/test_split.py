"""Who trains, chooses and measures: in the stated proportions, the same every time, and never one image twice."""

import csv
import dataclasses
import io
import re

import numpy as np
import pytest

from template.data import split as module
from template.data.examples import DataError, Examples
from template.data.split import differences, split, to_csv

DEFAULTS = {"val_fraction": 0.2, "test_fraction": 0.1, "seed": 0}


def make(labels, digests=None, parts=None, groups=None) -> Examples:
    """Examples of these labels; all images are different, no part is given and nobody belongs together, unless said.

    Args:
        labels: one an image.
        digests: contents of each image.
        parts: given parts.
        groups: given groups.
    """
    n = len(labels)
    return Examples(
        ids=np.array([f"image {i}" for i in range(n)]),
        images=[b""] * n,
        labels=np.array(labels, np.int64),
        class_names=tuple("abcdefgh"[: max(labels) + 1]),
        parts=np.array([""] * n if parts is None else parts),
        groups=None if groups is None else np.array(groups),
        digests=np.array([f"content {d}" for d in (range(n) if digests is None else digests)]),
    )


def counts(examples: Examples, part: str) -> list[int]:
    return np.bincount(examples.labels[examples.parts == part], minlength=len(examples.class_names)).tolist()


def by_content(examples: Examples) -> dict[str, str]:
    return dict(zip(examples.digests.tolist(), examples.parts.tolist(), strict=True))


@pytest.mark.parametrize(("val", "test"), [(0.2, 0.1), (0.5, 0.25), (0.1, 0.0), (0.0, 0.3), (0.01, 0.9)])
def test_every_class_is_divided_in_the_stated_proportions(val, test):
    sizes = [100, 137, 300]
    done = split(make(np.repeat([0, 1, 2], sizes).tolist()), val_fraction=val, test_fraction=test, seed=3)
    assert counts(done, "val") == [round(n * val) for n in sizes]
    assert counts(done, "test") == [round(n * test) for n in sizes]
    assert [sum(column) for column in zip(*(counts(done, p) for p in ("train", "val", "test")), strict=True)] == sizes
    assert done.skipped == ()


def test_neither_names_nor_order_matter():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    digests = [f"{label}-{n}" for label, n in zip(labels, rng.integers(0, 60, 200), strict=True)]  # with equal ones
    groups = [f"{label}-{n}" if n < 20 else "" for label, n in zip(labels, rng.integers(0, 90, 200), strict=True)]
    first = make(labels.tolist(), digests, groups=groups)
    order = rng.permutation(200)
    second = dataclasses.replace(first.take(order), ids=np.array([f"other name {i}" for i in range(200)]))
    first, second = split(first, **DEFAULTS), split(second, **DEFAULTS)
    np.testing.assert_array_equal(first.parts[order], second.parts)
    assert set(first.parts) == {"train", "val", "test"}


def test_class_names_do_not_matter_either():
    one = make([0, 1] * 50)
    other = dataclasses.replace(one, labels=1 - one.labels, class_names=("zebra", "yak"))
    np.testing.assert_array_equal(split(one, **DEFAULTS).parts, split(other, **DEFAULTS).parts)


def test_another_seed_is_another_split():
    examples = make([0, 1] * 100)
    one, other = (split(examples, **DEFAULTS | {"seed": seed}).parts for seed in (0, 1))
    assert (one != other).mean() > 0.2
    assert counts(dataclasses.replace(examples, parts=one), "val") == [20, 20]


def test_a_new_image_moves_at_most_two_others():
    """One over each of the two borders of its class; with a shuffled list, a third of all would move."""
    before = by_content(split(make([0, 1, 2] * 50), **DEFAULTS))
    for new in range(1000, 1050):
        after = by_content(split(make([0, 1, 2] * 50 + [1], [*range(150), new]), **DEFAULTS))
        assert sum(after[content] != part for content, part in before.items()) <= 2


def clusters(examples: Examples) -> list[set[int]]:
    """Sets of rows that belong together, found the slow way: join what shares an image or a group, until none does."""
    keys = [
        {("image", digest)} | ({("group", group)} if group else set())
        for digest, group in zip(examples.digests, examples.groups, strict=True)
    ]
    found = []
    for row, key in enumerate(keys):
        touching = [c for c in found if c[1] & key]
        found = [c for c in found if not c[1] & key]
        found.append(({row}.union(*(c[0] for c in touching)), key.union(*(c[1] for c in touching))))
    return [rows for rows, _ in found]


@pytest.mark.parametrize("case", range(25))
def test_equal_images_and_groups_are_never_divided(case):
    rng = np.random.default_rng(case)
    digests = rng.integers(0, 240, 240)
    labels = digests % 3  # equal images agree about their label; groups go across classes
    groups = [f"g{n}" if n < 60 else "" for n in rng.integers(0, 200, 240)]
    examples = split(make(labels.tolist(), digests, groups=groups), **DEFAULTS)
    for rows in clusters(examples):
        assert len(set(examples.parts[list(rows)])) == 1
    assert (examples.parts != "").all()
    for part, fraction in (("val", 0.2), ("test", 0.1)):
        assert abs((examples.parts == part).mean() - fraction) < 0.04


def test_groups_that_meet_in_one_image_stay_together():
    """Of a-b and b-c, a and c share nothing, and yet none may leave."""
    groups = ["a"] * 3 + ["b"] * 3 + [""] * 54
    digests = [0, 1, 2, 2, 3, 4, *range(5, 59)]
    for seed in range(20):
        done = split(make([0] * 30 + [1] * 30, digests, groups=groups), **DEFAULTS | {"seed": seed})
        assert len(set(done.parts[:6])) == 1


# Given parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"train", "val", "test"}, set()),
        ({"train", "val"}, {"test"}),
        ({"train", "test"}, {"val"}),
        ({"train"}, {"val", "test"}),
        ({"", "test"}, {"val"}),
    ],
)
def test_given_parts_are_kept_and_missing_ones_are_taken_from_train(given, taken):
    source = "train" if "train" in given else ""
    parts = [source] * 40 + [part for part in sorted(given - {source}) for _ in range(10)]
    done = split(make([row % 2 for row in range(len(parts))], parts=parts), **DEFAULTS)
    kept = np.array(parts) != source
    np.testing.assert_array_equal(done.parts[kept], np.array(parts)[kept])
    assert set(done.parts[:40]) == {"train"} | taken
    for part in taken:
        # 20 of each class in train; the fraction counts from those
        assert counts(dataclasses.replace(done.take(np.arange(40))), part) == [20 * DEFAULTS[f"{part}_fraction"]] * 2


def test_training_copies_of_held_out_images_are_left_out():
    parts = ["train"] * 20 + ["val"] * 4 + ["test"] * 4
    digests = list(range(28))
    digests[0] = digests[20]  # train = val
    digests[1] = digests[25]  # train = test
    digests[22] = digests[26]  # val = test: the test image stays
    digests[2] = digests[4]  # twice in train: no harm
    done = split(make([row % 2 for row in range(28)], digests, parts=parts), **DEFAULTS)
    assert np.flatnonzero(done.parts == "").tolist() == [0, 1, 22]
    assert done.skipped == (
        ("image 0", "the same image is in val/"),
        ("image 1", "the same image is in test/"),
        ("image 22", "the same image is in test/"),
    )
    others = [row for row in range(28) if row not in (0, 1, 22)]
    assert done.parts[others].tolist() == [parts[row] for row in others]


@pytest.mark.parametrize("source", ["train", ""])
def test_the_rest_of_a_held_out_group_does_not_train(source):
    parts = [source] * 40 + ["test"] * 4
    groups = ["patient 1", "patient 1", "patient 2", "patient 2", *[""] * 36, "patient 1", "", "", ""]
    done = split(make([row % 2 for row in range(44)], parts=parts, groups=groups), **DEFAULTS)
    assert done.skipped == tuple((f"image {row}", "the same group is in test/") for row in (0, 1))
    assert done.parts[:2].tolist() == ["", ""]
    assert len(set(done.parts[2:4])) == 1 and done.parts[2] != "test"


def test_clusters_are_what_shares_contents_or_group_directly_or_through_others():
    examples = make([0] * 7, [1, 2, 2, 3, 4, 5, 6], groups=["a", "a", "", "b", "b", "", "c"])
    found = module.clusters(examples)
    assert found[0] == found[1] == found[2] and found[3] == found[4]
    assert len(set(found)) == 4 and set(found) == set(range(4))
    assert len(set(module.clusters(make([0] * 7, range(7))))) == 7


def test_a_copy_of_a_training_image_is_no_leak_where_its_part_is_not_given():
    done = split(make([0, 1] * 20, [0, 1, 0, 1, *range(4, 40)], parts=["train"] * 2 + [""] * 38), **DEFAULTS)
    assert done.skipped == ()
    assert done.parts[0] == done.parts[2] and done.parts[1] == done.parts[3]


def test_equal_images_with_different_labels_are_left_out_all_of_them():
    done = split(make([0, 1] * 20, [7, 7, 7, *range(10, 47)]), **DEFAULTS)
    reason = "the same image has several labels: ['a', 'b']"
    assert done.skipped == tuple((f"image {row}", reason) for row in (0, 1, 2))
    assert np.flatnonzero(done.parts == "").tolist() == [0, 1, 2]


def test_what_was_left_out_before_is_still_listed():
    examples = dataclasses.replace(make([0, 1] * 20, [7, 7, *range(10, 48)]), skipped=(("broken.jpg", "empty"),))
    assert split(examples, **DEFAULTS).skipped[0] == ("broken.jpg", "empty")
    assert len(split(examples, **DEFAULTS).skipped) == 3


# Too little ------------------------------------------------------------------------------------------------------


def refusal(examples: Examples, **fractions) -> str:
    with pytest.raises(DataError) as caught:
        split(examples, **DEFAULTS | fractions)
    return str(caught.value)


@pytest.mark.parametrize(
    ("val", "test"), [(0.2, 0.1), (0.2, 0.0), (0.5, 0.4), (0.05, 0.05), (0.9, 0.05), (0.34, 0.33), (0.01, 0.0)]
)
def test_the_number_that_a_small_class_is_said_to_need_suffices_and_one_less_does_not(val, test):
    fractions = {"val_fraction": val, "test_fraction": test}
    message = refusal(make([0] * 200 + [1]), **fractions)
    assert message.startswith("Class 'b' has 1 usable")
    need = int(re.search(r"need at least (\d+)", message)[1])
    done = split(make([0] * 200 + [1] * need), **DEFAULTS | fractions)
    assert all(counts(done, part)[1] for part in ("train", "val", "test") if part != "test" or test)
    assert f"need at least {need}" in refusal(make([0] * 200 + [1] * (need - 1)), **fractions)


@pytest.mark.parametrize(
    ("extra", "usable"),
    [
        ({"parts": ["train"] * 30 + ["test"] * 10 + ["train"] + ["test"] * 19}, 1),  # a given part is not divided
        ({"groups": [""] * 40 + ["one patient"] * 20}, 1),
        ({"digests": [*range(40), *[40, 41] * 10]}, 2),
    ],
    ids=["given test", "one group", "two images"],
)
def test_a_class_with_too_little_to_divide_is_told_how_much_that_is(extra, usable):
    message = refusal(make([0] * 40 + [1] * 20, **extra))
    assert message.startswith(f"Class 'b' has {usable} usable images")
    assert int(re.search(r"need at least (\d+)", message)[1]) > usable


def test_a_class_is_never_said_to_need_what_it_has():
    """With large fractions, 5 images can be divided and 7 cannot."""
    for val in (0.05, 0.2, 0.5, 0.7, 0.9):
        for test in (0.0, 0.04, 0.1, 0.4):
            for size in range(1, 30):
                if val + test < 1:
                    try:
                        split(make([0] * 100 + [1] * size), val_fraction=val, test_fraction=test, seed=0)
                    except DataError as error:
                        assert int(re.search(r"'b'.*need at least (\d+)", str(error))[1]) > size


@pytest.mark.parametrize("groups", [6, 8, 12])
def test_groups_of_very_different_sizes_can_be_divided(groups):
    """One patient with most of the images must not leave the other parts empty."""
    for seed in range(50):
        sizes = np.random.default_rng(seed).permutation([60] + [5] * (groups - 1))
        names = np.repeat([f"patient {i}" for i in range(groups)], sizes)
        labels = [0] * len(names) + [1] * 100
        done = split(make(labels, groups=[*names, *[""] * 100]), **DEFAULTS | {"seed": seed})
        assert min(counts(done, part)[0] for part in ("train", "val", "test")) > 0


def test_a_class_that_a_given_part_lacks_is_named():
    examples = make([0, 1] * 20, parts=["train"] * 30 + ["val"] * 5 + ["test"] * 5)
    rows = (examples.parts != "test") | (examples.labels == 0)
    assert "Class 'b' has no image in the given ['test'] part" in refusal(examples.take(rows))


@pytest.mark.parametrize("unlabelled", [0, 1, 2])
def test_a_folder_of_unlabelled_images_in_the_test_part_is_named_wherever_it_is_in_the_alphabet(unlabelled):
    labels = [label for label in range(3) if label != unlabelled] * 15 + [unlabelled] * 5
    said = refusal(make(labels, parts=["train"] * 30 + ["test"] * 5))
    assert f"Class {'abc'[unlabelled]!r} is in test/ alone" in said and "predict.py" in said


@pytest.mark.parametrize(
    "examples",
    [
        make([0] * 50),
        make([0, 1] * 20, parts=["test"] * 40),
        make([0, 1] * 20, parts=["test"] * 20 + ["val"] * 20),
        make([0, 1] * 20, [7] * 40),
    ],
    ids=["one class", "only test", "no train", "all contradict"],
)
def test_nothing_to_train_on_is_an_error(examples):
    assert refusal(examples)


def test_groups_that_go_across_given_parts_are_named_where_nothing_is_left_to_train_on():
    """All of each patient is in test/ in part, so that nothing of any may train."""
    examples = make([0, 1] * 20, parts=["train", "train", "test", "test"] * 10, groups=[str(n // 4) for n in range(40)])
    said = refusal(examples)
    assert "'a' is in test/ alone" in said and "skipped 'image 0': the same group is in test/" in said


def test_what_has_changed_between_two_splits_is_named():
    done = split(make([0, 1] * 20), **DEFAULTS)
    digests, labels, parts = done.digests.copy(), done.labels.copy(), done.parts.copy()
    digests[3], labels[4] = "another", 1 - labels[4]
    parts[5] = "val" if parts[5] != "val" else "test"
    now = dataclasses.replace(done, digests=digests, labels=labels, parts=parts).take(np.arange(40) != 7)
    ids, before = done.ids, to_csv(done)
    names = done.class_names
    assert differences(before, to_csv(now)) == [
        f"missing or unreadable: {str(ids[7])!r}",
        f"other contents: {str(ids[3])!r}",
        f"label {names[done.labels[4]]!r} is now {names[labels[4]]!r}: {str(ids[4])!r}",
        f"part {str(done.parts[5])!r} is now {str(parts[5])!r}: {str(ids[5])!r}",
    ]
    assert f"new: {str(ids[7])!r}" in differences(to_csv(now), before)
    assert differences(before, to_csv(done.take(np.arange(40)[::-1]))) == ["their order"]


def test_the_table_of_a_split_says_who_is_where_and_survives_odd_names():
    examples = make([0, 1] * 20, [7, 7, *range(10, 48)])
    examples = dataclasses.replace(examples, ids=np.array([f'a, "{i}"\n' for i in range(40)]))
    done = split(examples, **DEFAULTS)
    rows = list(csv.DictReader(io.StringIO(to_csv(done), newline="")))
    assert [row["id"] for row in rows] == examples.ids[2:].tolist()  # the first two contradict each other
    assert [row["sha256"] for row in rows] == examples.digests[2:].tolist()
    assert [row["label"] for row in rows] == ["a", "b"] * 19
    assert [row["part"] for row in rows] == done.parts[2:].tolist()
