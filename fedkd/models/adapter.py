"""The adapter to torchvision's models."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..errors import unknown
from ..registry import names
from .zoo import Classifier, Shape


def torchvision_builder(name: str, key: str) -> Callable[..., nn.Module]:
    """Return the builder of one of torchvision's classifiers. Raises InputError for an unknown name."""
    from torchvision import models as zoo

    valid = zoo.list_models(module=zoo)
    if name not in valid:
        raise unknown(key, f"torchvision:{name}", [f"torchvision:{n}" for n in valid] + names("models"))

    def builder(shape: Shape, classes: int) -> nn.Module:
        trunk = zoo.get_model(name, weights=None, **_OPTIONS.get(name, {}))
        path = [p for p, module in trunk.named_modules() if isinstance(module, nn.Linear)]
        if not path:
            raise ValueError("its last layer is not linear, so it has no features before a linear classifier")
        width = trunk.get_submodule(path[-1]).in_features
        assert isinstance(width, int)
        trunk.set_submodule(path[-1], nn.Identity())
        return Classifier(nn.Sequential(_ThreeChannels(), trunk), width, classes)

    return builder


# without the auxiliary classifiers of training, which return several outputs
_OPTIONS: dict[str, dict[str, bool]] = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}


class _ThreeChannels(nn.Module):
    """Converts grey images to colour images, for models that need three channels."""

    def forward(self, images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1)
