"""Augmentation does what its policy says, to the image that it says, the same way every time."""

import dataclasses

import cv2
import numpy as np
import pytest

from template.data.augment import (
    POLICIES,
    Policy,
    _rectangle,
    affine_matrix,
    augment,
    color_matrix,
    select_ops,
    strengthen,
    uniform_draws,
)
from template.data.images.load import zoom_center

SIZE = 32
ALL = Policy(hflip=True, area=0.3, aspect=1.5, rotation=25, shear=15, translation=0.1, brightness=0.3, contrast=0.3,
             saturation=0.3, hue=20, random_erasing=0.5, grayscale=0.3, blur=0.3, solarize=0.3)  # fmt: skip
GEOMETRY = dataclasses.replace(ALL, brightness=0, contrast=0, saturation=0, hue=0, random_erasing=0, grayscale=0, 
                               blur=0, solarize=0)  # fmt: skip
COLOUR = Policy(brightness=0.3, contrast=0.3, saturation=0.5, hue=30)
CHOSEN = {"rotation": 90, "shear": 15, "brightness": 0.4, "contrast": 0.4, "saturation": 0.6, "hue": 20}
"""What `num_ops` chooses from."""


def noise(n: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def u(**values: float) -> np.ndarray:
    """Draws that leave everything in the middle, but for those given as u0=..., u4=..."""
    numbers = np.full(30, 0.5)
    numbers[0] = 0  # the whole area
    for name, value in values.items():
        numbers[int(name[1:])] = value
    return numbers


# What the numbers come from --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy",
    [ALL, dataclasses.replace(ALL, num_ops=3), *(dataclasses.replace(p, hflip=True) for p in POLICIES.values())],
    ids=["all", "only 3", *POLICIES],
)
def test_a_image_varies_the_same_whatever_the_batch(policy):
    """Its numbers are a function of seed, epoch and index: neither batch size nor order nor a resumed run counts."""
    images, indices = noise(37), np.arange(100, 137)
    whole = augment(images, policy, 1, 2, indices)
    for size in (1, 5, 36):
        batches = [slice(start, start + size) for start in range(0, 37, size)]
        parts = [augment(images[batch], policy, 1, 2, indices[batch]) for batch in batches]
        np.testing.assert_array_equal(whole, np.concatenate(parts))
    order = np.random.default_rng(1).permutation(37)
    np.testing.assert_array_equal(whole[order], augment(images[order], policy, 1, 2, indices[order]))
    np.testing.assert_array_equal(whole, augment(images, policy, 1, 2, indices))


@pytest.mark.parametrize("policy", [ALL, *POLICIES.values()], ids=["all", *POLICIES])
def test_matrices_of_many_images_are_those_of_each(policy):
    many = select_ops(np.stack([uniform_draws(1, 2, index) for index in range(100)]), policy)
    for matrix, shape in (
        (lambda u: affine_matrix(u, policy, 224), (2, 3)),
        (lambda u: color_matrix(u, policy), (3, 4)),
    ):
        together = matrix(many)
        assert together.shape == (100, *shape) and together.dtype == np.float64
        np.testing.assert_allclose(together, [matrix(one) for one in many], rtol=1e-12, atol=1e-12)
        alone = [matrix(many[i : i + 1])[0] for i in range(100)]
        np.testing.assert_array_equal(together, alone)  # of a batch of one to the last bit: pixels depend on it
        np.testing.assert_array_equal(together.reshape(4, 25, *shape), matrix(many.reshape(4, 25, 30)))


def test_a_batch_of_nothing_stays_nothing():
    for policy in (ALL, POLICIES["random"]):
        assert augment(noise(3)[:0], policy, 0, 0, np.arange(0)).shape == (0, SIZE, SIZE, 3)


@pytest.mark.parametrize("other", [(2, 2, 0), (1, 3, 0), (1, 2, 1)], ids=["seed", "epoch", "index"])
def test_another_seed_epoch_or_index_is_another_variation(other):
    images = np.repeat(noise(1), 8, axis=0)
    seed, epoch, shift = other
    one = augment(images, ALL, 1, 2, np.arange(8))
    two = augment(images, ALL, seed, epoch, np.arange(8) + 8 * shift)
    assert (one != two).mean() > 0.5
    assert not np.array_equal(uniform_draws(1, 2, 0), uniform_draws(seed, epoch, shift))


def test_numbers_are_uniform_and_unrelated():
    numbers = np.array(
        [uniform_draws(seed, epoch, index) for seed in (0, 1) for epoch in range(20) for index in range(50)]
    )
    assert numbers.shape == (2000, 30)
    assert len(np.unique(numbers)) == numbers.size
    assert numbers.min() >= 0 and numbers.max() < 1
    np.testing.assert_allclose(numbers.mean(axis=0), 0.5, atol=0.03)  # 4.6 standard deviations
    related = np.corrcoef(numbers.T) - np.eye(30)
    assert np.abs(related).max() < 0.1  # 4.5 standard deviations
    next_one = [np.corrcoef(numbers[:-1, i], numbers[1:, i])[0, 1] for i in range(20)]
    assert np.abs(next_one).max() < 0.1


@pytest.mark.parametrize("policy", [Policy(), POLICIES["none"]])
def test_no_policy_no_change(policy):
    np.testing.assert_array_equal(augment(noise(4), policy, 0, 0, np.arange(4)), noise(4))


@pytest.mark.parametrize("policy", [ALL, GEOMETRY, COLOUR, Policy(hflip=True), POLICIES["heavy"]])
def test_the_originals_are_not_written_to(policy):
    images = noise(8)
    result = augment(images, policy, 0, 0, np.arange(8))
    np.testing.assert_array_equal(images, noise(8))
    assert result.shape == images.shape and result.dtype == np.uint8


@pytest.mark.parametrize("name", ["light", "medium", "heavy", "random"])
def test_named_policies_vary_every_image_and_stronger_ones_more(name):
    y, x = np.mgrid[:64, :64]
    images = np.repeat(np.stack([4 * x, 4 * y, 2 * (x + y)], axis=2)[None].astype(np.uint8), 40, axis=0)

    def change(policy):
        return np.abs(augment(images, policy, 0, 0, np.arange(40)).astype(float) - images).mean(axis=(1, 2, 3))

    assert change(POLICIES[name]).min() > 0
    weaker = {"light": "none", "medium": "light", "heavy": "medium", "random": "light"}[name]
    assert change(POLICIES[name]).mean() > 1.3 * change(POLICIES[weaker]).mean()


# A few of them at full strength ----------------------------------------------------------------------------------


def strengths(policy: Policy, n: int = 1200) -> np.ndarray:
    """Of each image and each of CHOSEN, the variation as a part of the most that the policy allows: [n, 6]."""
    u = select_ops(np.stack([uniform_draws(3, 4, index) for index in range(n)]), policy)
    out = []
    for name, most in CHOSEN.items():
        alone = Policy(**{name: most})
        warps, colours = affine_matrix(u, alone, SIZE), color_matrix(u, alone)
        value = {
            "rotation": np.rad2deg(np.arctan2(warps[:, 1, 0], warps[:, 0, 0])),
            "shear": np.rad2deg(np.arctan(warps[:, 0, 1])),
            "brightness": colours[:, 0, 0] - 1,
            "contrast": colours[:, 0, 0] - 1,
            "saturation": colours[:, 0, 0] - colours[:, 1, 0] - 1,
            "hue": np.rad2deg(np.arctan2(np.sqrt(3) * (colours[:, 1, 0] - colours[:, 2, 0]), 3 * colours[:, 0, 0] - 1)),
        }[name]
        out.append(value / most)
    return np.stack(out, axis=1)


@pytest.mark.parametrize("num_ops", [1, 2, 6])
def test_so_many_variations_are_chosen_at_full_strength_either_way(num_ops):
    found = strengths(Policy(**CHOSEN, num_ops=num_ops))
    changed = np.abs(found) > 1e-9
    assert (changed.sum(axis=1) == num_ops).all()
    np.testing.assert_allclose(np.abs(found[changed]), 1, atol=1e-9)
    times, spread = len(found) * num_ops / 6, np.sqrt(len(found) / 4)
    np.testing.assert_allclose(changed.sum(axis=0), times, atol=4.5 * spread)  # all six equally often
    np.testing.assert_allclose((found > 0.5).sum(axis=0), times / 2, atol=4.5 * spread)  # and either way
    if num_ops == 2:
        together = changed.astype(int).T @ changed  # any two as often as any other two
        np.testing.assert_allclose(
            together[np.triu_indices(6, 1)], len(found) / 15, atol=4.5 * np.sqrt(len(found) / 15)
        )


def test_without_a_choice_all_vary_at_any_strength():
    found = np.abs(strengths(Policy(**CHOSEN)))
    assert ((found > 0) & (found < 1)).all()
    np.testing.assert_allclose(found.mean(axis=0), 0.5, atol=0.05)


def test_the_choice_leaves_crop_flip_and_erasing_as_they_were():
    policy = Policy(hflip=True, area=0.5, aspect=4 / 3, random_erasing=0.5)
    images = noise(30)
    few = augment(images, dataclasses.replace(policy, num_ops=2), 0, 0, np.arange(30))
    np.testing.assert_array_equal(few, augment(images, policy, 0, 0, np.arange(30)))


def test_chosen_variations_reach_the_pixels():
    images = np.repeat(noise(1) // 2 + 48, 300, axis=0)  # so that no value is cut off at 0 or 255
    image = images[0].astype(float)
    result = augment(images, Policy(**CHOSEN | {"rotation": 90}, num_ops=1), 0, 0, np.arange(300))
    turned = [(result == np.rot90(images[0], k)).all(axis=(1, 2, 3)) for k in (1, 3)]
    bright = [(np.abs(result - s * image) <= 0.9).all(axis=(1, 2, 3)) for s in (0.6, 1.4)]
    contrast = [(np.abs(result - 127.5 - s * (image - 127.5)) <= 0.9).all(axis=(1, 2, 3)) for s in (0.6, 1.4)]
    for kind in (*turned, *bright, *contrast):
        assert 5 < kind.sum() < 45  # 25 expected, 4 standard deviations
    assert not (result == images).all(axis=(1, 2, 3)).any()


# A closer look ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 63, 224])
def test_a_closer_look_shows_the_middle_two_thirds(size):
    """In an image whose colours are its coordinates, every pixel tells where it came from."""
    y, x = np.mgrid[:size, :size]
    image = np.stack([x, y, np.full_like(x, 77)], axis=2).astype(np.uint8)
    out = zoom_center(image[None])[0]
    assert out.shape == image.shape and out.dtype == np.uint8
    # From edge to edge: a sixth of the side is left out at each. A pixel's place is its middle.
    place = ((np.arange(size) + 0.5) / size * 2 / 3 + 1 / 6) * size - 0.5
    np.testing.assert_allclose(out[..., 0], np.broadcast_to(place, (size, size)), atol=0.51)
    np.testing.assert_allclose(out[..., 1], np.broadcast_to(place[:, None], (size, size)), atol=0.51)
    np.testing.assert_array_equal(out[..., 2], 77)


def test_a_closer_look_is_taken_at_each_image_by_itself():
    images = noise(5)
    np.testing.assert_array_equal(zoom_center(images)[3], zoom_center(images[3:4])[0])
    np.testing.assert_array_equal(images, noise(5))
    assert zoom_center(images[:0]).shape == (0, SIZE, SIZE, 3)


# Geometry --------------------------------------------------------------------------------------------------------


def test_about_half_are_mirrored_and_the_others_are_untouched():
    images = np.repeat(noise(1), 400, axis=0)
    result = augment(images, Policy(hflip=True), 0, 0, np.arange(400))
    mirrored = (result == images[:, :, ::-1]).all(axis=(1, 2, 3))
    untouched = (result == images).all(axis=(1, 2, 3))
    assert (mirrored ^ untouched).all()  # exact pixels: no half of a pixel is lost
    assert 160 < mirrored.sum() < 240  # 4 standard deviations


@pytest.mark.parametrize("name", ["light", "medium", "heavy", "random"])
def test_named_policies_mirror_only_if_told_to(name):
    for flip in (False, True):
        policy = dataclasses.replace(POLICIES[name], hflip=flip)
        handed = [np.linalg.det(affine_matrix(uniform_draws(0, 0, i), policy, SIZE)[:, :2]) for i in range(100)]
        assert (min(handed) < 0) == flip
        assert max(handed) > 0


@pytest.mark.parametrize(
    ("policy", "numbers", "corners"),
    [
        # Corners of the input that the output's top left, top right and bottom left corner show, in sides.
        (Policy(area=0.25), u(u0=1, u5=0, u6=0), [(0, 0), (0.5, 0), (0, 0.5)]),
        (Policy(area=0.25), u(u0=1, u5=1, u6=0), [(0.5, 0), (1, 0), (0.5, 0.5)]),
        (Policy(area=0.25), u(u0=1, u5=0, u6=1), [(0, 0.5), (0.5, 0.5), (0, 1)]),
        (Policy(area=0.25), u(u0=1), [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75)]),
        (Policy(area=0.25), u(u0=0), [(0, 0), (1, 0), (0, 1)]),
        (Policy(area=0.16, aspect=4), u(u0=1, u1=1), [(0.1, 0.4), (0.9, 0.4), (0.1, 0.6)]),  # 4 times as wide as high
        (Policy(area=0.16, aspect=4), u(u0=1, u1=0), [(0.4, 0.1), (0.6, 0.1), (0.4, 0.9)]),
        (Policy(hflip=True), u(u4=0.49), [(1, 0), (0, 0), (1, 1)]),
        (Policy(hflip=True), u(u4=0.51), [(0, 0), (1, 0), (0, 1)]),
        (Policy(hflip=True, area=0.25), u(u0=1, u4=0, u5=0, u6=0), [(0.5, 0), (0, 0), (0.5, 0.5)]),
        (Policy(translation=0.1), u(u5=1, u6=0), [(0.1, -0.1), (1.1, -0.1), (0.1, 0.9)]),
        (Policy(rotation=90), u(u2=1), [(1, 0), (1, 1), (0, 0)]),
        (Policy(rotation=90), u(u2=0), [(0, 1), (0, 0), (1, 1)]),
        (Policy(shear=45), u(u3=1), [(-0.5, 0), (0.5, 0), (0.5, 1)]),
        (Policy(shear=45, rotation=90), u(u2=1, u3=1), [(1, -0.5), (1, 0.5), (0, 0.5)]),  # first sheared, then turned
    ],
)
def test_corners_of_the_output_lie_where_they_should_in_the_input(policy, numbers, corners):
    for size in (32, 224):
        edges = np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1]]) * [size, size, 1] - [0.5, 0.5, 0]  # of pixels, not centres
        found = (edges @ affine_matrix(numbers, policy, size).T + 0.5) / size
        np.testing.assert_allclose(found, corners, atol=1e-9)


def test_pixels_come_from_where_the_matrix_says():
    """In an image whose colours are its coordinates, every output pixel tells where it came from."""
    size = 64
    y, x = np.mgrid[:size, :size]
    image = np.stack([3 * x, 3 * y, np.full_like(x, 77)], axis=2).astype(np.uint8)
    for index in range(50):
        result = augment(image[None], GEOMETRY, 0, 0, np.array([index]))[0].astype(float)
        matrix = affine_matrix(uniform_draws(0, 0, index), GEOMETRY, size)
        source = np.stack([x, y, np.ones_like(x)], axis=2) @ matrix.T
        inside = ((source >= 0) & (source <= size - 1)).all(axis=2)
        assert inside.mean() > 0.3
        # OpenCV rounds places to 1/32 pixel, which is 0.05 in value, and values to whole numbers.
        np.testing.assert_allclose(result[inside][:, :2], 3 * source[inside], atol=0.7)
        np.testing.assert_array_equal(result[..., 2], 77)  # outside, the image is continued by its mirror image


def test_crops_show_the_stated_part_of_the_area_and_lie_inside():
    policy = Policy(area=0.5, aspect=4 / 3)
    square = np.array([[-0.5, -0.5, 1], [SIZE - 0.5, -0.5, 1], [-0.5, SIZE - 0.5, 1]])
    areas, aspects = [], []
    for index in range(500):
        corner, right, below = square @ affine_matrix(uniform_draws(0, 0, index), policy, SIZE).T
        width, height = right[0] - corner[0], below[1] - corner[1]
        assert min(corner) > -0.5 - 1e-9 and max(right[0], below[1]) < SIZE - 0.5 + 1e-9
        areas.append(width * height / SIZE**2)
        aspects.append(width / height)
    # A crop that would be wider than the image is cut, so the smallest is a little below the stated area.
    assert 0.45 < min(areas) < 0.55 and 0.9 < max(areas) <= 1
    assert 3 / 4 - 1e-9 < min(aspects) < 0.8 and 1.25 < max(aspects) < 4 / 3 + 1e-9


# Colour ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "numbers", "colour", "expected"),
    [
        (Policy(brightness=0.2), u(u7=1), (100, 50, 10), (120, 60, 12)),
        (Policy(brightness=0.2), u(u7=0), (100, 50, 10), (80, 40, 8)),
        (Policy(contrast=0.5), u(u8=1), (127.5, 227.5, 27.5), (127.5, 277.5, -22.5)),  # 127.5 + 1.5 * (x - 127.5)
        (Policy(contrast=0.5), u(u8=0), (127.5, 227.5, 27.5), (127.5, 177.5, 77.5)),
        # luminance 0.299 * 100 + 0.587 * 200 + 0.114 * 50 = 153
        (Policy(saturation=1), u(u9=0), (100, 200, 50), (153, 153, 153)),
        (Policy(saturation=1), u(u9=1), (100, 200, 50), (47, 247, -53)),
        (Policy(saturation=0.5), u(u9=0), (100, 200, 50), (126.5, 176.5, 101.5)),
        # a third of a turn about the grey axis: red becomes green, green blue, blue red
        (Policy(hue=120), u(u10=1), (100, 200, 50), (50, 100, 200)),
        (Policy(hue=120), u(u10=0), (100, 200, 50), (200, 50, 100)),
        (Policy(hue=120), u(u10=0.5), (100, 200, 50), (100, 200, 50)),
        # by hand: grey 153; contrast 127.5 + 1.5 * 25.5 = 165.75; brightness 1.2 * 165.75
        (Policy(saturation=1, contrast=0.5, brightness=0.2), u(u9=0, u8=1, u7=1), (100, 200, 50), (198.9,) * 3),
    ],
)
def test_colours_worked_out_by_hand(policy, numbers, colour, expected):
    np.testing.assert_allclose(color_matrix(numbers, policy) @ [*colour, 1], expected, atol=1e-9)


def test_pixels_are_multiplied_by_the_matrix_and_cut_to_the_range():
    images = noise(20)
    result = augment(images, COLOUR, 0, 0, np.arange(20))
    for index in range(20):
        matrix = color_matrix(uniform_draws(0, 0, index), COLOUR)
        expected = np.clip(images[index] @ matrix[:, :3].T + matrix[:, 3], 0, 255)
        # OpenCV rounds the matrix to 1/1024, which is worth 3 * 255 / 2048 = 0.37 at most and 0.19 on the mean of
        # noise. The results are rounded too; if they were cut off, they would be low by 0.5 on average.
        np.testing.assert_allclose(result[index], expected, atol=0.5 + 0.38)
        assert abs((result[index] - expected).mean()) < 0.19


def test_greys_stay_grey_under_hue_and_saturation():
    greys = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, axis=3)
    for index in range(30):
        result = augment(greys, Policy(saturation=0.9, hue=180), 0, 0, np.array([index]))
        np.testing.assert_array_equal(result, greys)


def test_hue_keeps_the_mean_of_the_channels():
    for index in range(30):
        matrix = color_matrix(uniform_draws(0, 0, index), Policy(hue=180))
        np.testing.assert_allclose(matrix[:, :3].sum(axis=0), 1, atol=1e-12)
        np.testing.assert_allclose(matrix[:, :3] @ matrix[:, :3].T, np.eye(3), atol=1e-12)


# Erasing ---------------------------------------------------------------------------------------------------------


def test_a_rectangle_of_one_colour_is_erased_as_often_as_stated():
    images = np.repeat(noise(1), 1000, axis=0)
    result = augment(images, Policy(random_erasing=0.3), 0, 0, np.arange(1000))
    erased = 0
    for one in result:
        rows, columns = np.nonzero((one != images[0]).any(axis=2))
        if len(rows):
            erased += 1
            inside = one[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert len(np.unique(inside.reshape(-1, 3), axis=0)) == 1
    assert 240 < erased < 360  # 4 standard deviations


@pytest.mark.parametrize("size", [16, 32, 224])
def test_rectangles_have_the_stated_area_and_aspect_and_lie_anywhere_inside(size):
    heights, widths = [], []
    for index in range(3000):
        top, left, bottom, right = _rectangle(uniform_draws(0, 0, index)[13:17], size)
        assert 0 <= top < bottom <= size and 0 <= left < right <= size
        heights.append(bottom - top)
        widths.append(right - left)
    heights, widths = np.array(heights), np.array(widths)
    for area, aspect in ((0, 0), (1, 0.5), (0.5, 0.999)):
        assert _rectangle(np.array([area, aspect, 0, 0]), size)[:2] == (0, 0)
        assert _rectangle(np.array([area, aspect, 0.9999, 0.9999]), size)[2:] == (size, size)
    # Sides are rounded down to whole pixels: the area lies between that of the sides and that of the sides + 1.
    assert (heights * widths).max() <= 0.2 * size**2
    assert ((heights + 1) * (widths + 1)).min() >= 0.02 * size**2
    assert ((heights + 1) / widths).min() >= 0.3 and (heights / (widths + 1)).max() <= 3.34
    assert abs(np.mean(heights * widths) / size**2 - 0.11) < (0.01 if size > 100 else 0.03)


# Strength, grey, blur and solarizing -------------------------------------------------------------------------------


def test_what_is_off_takes_no_number_from_what_is_on():
    """The numbers of the other variations are those that they have always been."""
    old = np.random.Generator(np.random.Philox(key=5, counter=[0, 0, 6, 7])).random(26)
    np.testing.assert_array_equal(uniform_draws(5, 6, 7)[:26], old)
    images, heavy = noise(60), POLICIES["heavy"]
    alone = augment(images, heavy, 0, 0, np.arange(60))
    for name in ("grayscale", "blur", "solarize"):
        some = augment(images, dataclasses.replace(heavy, **{name: 0.5}), 0, 0, np.arange(60))
        same = (some == alone).all(axis=(1, 2, 3))
        assert 15 < same.sum() < 53  # the others are as they were; the weakest blur does not show either


def test_grey_images_have_equal_channels_of_their_luminance():
    images = noise(400)
    result = augment(images, Policy(grayscale=0.3), 0, 0, np.arange(400))
    grey = (result == result[..., :1]).all(axis=(1, 2, 3))
    assert 80 < grey.sum() < 160  # 4 standard deviations
    np.testing.assert_array_equal(result[~grey], images[~grey])
    expected = images[grey] @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(result[grey][..., 0], expected, atol=0.9)
    varied = augment(images, dataclasses.replace(COLOUR, grayscale=0.999), 0, 0, np.arange(400))
    assert (varied == varied[..., :1]).all(axis=(1, 2, 3)).mean() > 0.99  # whatever hue and saturation did


def test_blur_smooths_as_strongly_at_any_size_and_keeps_the_mean():
    images = np.repeat(noise(1, 224), 60, axis=0)
    result = augment(images, Policy(blur=0.5), 0, 0, np.arange(60))
    for index, (one, before) in enumerate(zip(result, images, strict=True)):
        *_, chance, u_sigma, _ = uniform_draws(0, 0, index)
        expected = cv2.GaussianBlur(before, (0, 0), 0.1 + 1.9 * u_sigma) if chance < 0.5 else before
        np.testing.assert_array_equal(one, expected)
    assert result.std(axis=(1, 2, 3)).min() < 0.4 * images[0].std()
    tiny = augment(noise(60, 16), Policy(blur=0.999), 0, 0, np.arange(60))
    assert (tiny != noise(60, 16)).any(axis=(1, 2, 3)).sum() > 30  # in little images it shows too
    np.testing.assert_allclose(result.mean(axis=(1, 2, 3)), images[0].mean(), atol=1)
    edge = np.zeros((1, 448, 448, 3), np.uint8)
    edge[:, :, 224:] = 200
    large = augment(edge, Policy(blur=0.999), 0, 0, np.arange(1))[0, 100, :, 0]
    small = augment(edge[:, ::2, ::2], Policy(blur=0.999), 0, 0, np.arange(1))[0, 50, :, 0]
    np.testing.assert_allclose(large.reshape(-1, 2).mean(axis=1), small, atol=8)


def test_solarizing_turns_the_bright_half_upside_down():
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, axis=3)
    images = np.repeat(ramp, 400, axis=0)
    result = augment(images, Policy(solarize=0.3), 0, 0, np.arange(400))
    turned = (result != images).any(axis=(1, 2, 3))
    assert 80 < turned.sum() < 160  # 4 standard deviations
    expected = np.concatenate([np.arange(128), np.arange(127, -1, -1)])
    for one in result[turned]:
        np.testing.assert_array_equal(one[..., 0].ravel(), expected)


@pytest.mark.parametrize("name", POLICIES)
def test_strength_one_is_the_policy_itself(name):
    assert strengthen(POLICIES[name], 1.0) == POLICIES[name]
    assert strengthen(Policy(), 3.0) == Policy()


def test_strength_widens_ranges_but_leaves_chances():
    heavy, half, most = (strengthen(POLICIES["heavy"], strength) for strength in (1.0, 0.5, 3.0))
    assert (half.rotation, half.shear, half.brightness, half.hue) == (10, 5, 0.2, 7.5)
    assert half.area == 0.5 and half.aspect**2 == pytest.approx(4 / 3)
    assert most.rotation == 60 and most.translation == pytest.approx(0.15)
    assert (
        half.random_erasing == most.random_erasing == heavy.random_erasing and half.hflip == most.hflip == heavy.hflip
    )
    # Nothing becomes black, negative or smaller than what can still be seen.
    assert most.area == 0.08 and most.brightness == most.contrast == most.saturation == 0.9
    corners = [affine_matrix(uniform_draws(0, 0, i), half, SIZE) for i in range(300)]
    turns = [np.rad2deg(np.arctan2(matrix[1, 0], matrix[0, 0])) for matrix in corners]
    assert 9 < np.abs(turns).max() <= 10
