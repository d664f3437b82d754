"""Models by name: a function of one's own, projection heads, the layout of weights, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import Make, server_state

from fedkd.data.spec import Form
from fedkd.errors import InputError
from fedkd.models.build import build, fill
from fedkd.runs.run import run
from fedkd.streams import default_stream, torch_stream


@pytest.fixture(autouse=True)
def _stream() -> object:
    with default_stream(torch_stream(0, 0, "server", "test")):
        yield


def test_a_function_in_a_file_is_a_model(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n"
        "from fedkd import Classifier\n"
        "def build(shape, classes, *, width: int = 5):\n"
        "    pixels = shape[0] * shape[1] * shape[2]\n"
        "    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(pixels, width)), width, classes)\n"
        "def no_features(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))\n"
        "def two_outputs(shape, classes):\n"
        "    return Classifier(nn.Flatten(), shape[0] * shape[1] * shape[2], 2)\n"
    )
    assert build(f"{file}:build", {"width": 9}, Form("image", (1, 8, 8)), 4).classifier.in_features == 9
    assert build(f"{file}:no_features", {}, Form("image", (1, 8, 8)), 4).classifier.in_features == 64
    with pytest.raises(InputError, match=r"must return logits of shape \(2, 4\)"):
        build(f"{file}:two_outputs", {}, Form("image", (1, 8, 8)), 4)


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("lenet", {}, "model.name: unknown 'lenet'; did you mean 'lenet5'"),
        ("torchvision:resnet81", {}, "did you mean 'torchvision:resnet18'"),
        ("lenet5", {}, "model.name = 'lenet5' cannot be built for images of 1x8x8 and 10 classes"),
        ("mlp", {"hiden": [3]}, "model.hiden: unknown key 'hiden'; did you mean 'hidden'"),
        ("mlp", {"hidden": [0]}, r"model.hidden.0 = 0: .*greater than or equal to 1"),
        ("resnet8", {"norm": "layer"}, "model.norm = 'layer': .*'batch' or 'group'"),
        ("torchvision:squeezenet1_0", {}, "its last layer is not linear"),
    ],
)
def test_bad_models_are_refused_by_key(name: str, table: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(name, table, Form("image", (1, 8, 8)), 10)


@pytest.mark.parametrize(
    ("name", "pixels", "needed"),
    [
        ("lenet5", 8, 12),
        ("torchvision:vit_b_16", 28, 224),
        pytest.param("torchvision:inception_v3", 28, 75, marks=pytest.mark.slow),
        ("torchvision:alexnet", 28, 63),
        pytest.param("torchvision:vgg11", 28, 32, marks=pytest.mark.slow),
        pytest.param("torchvision:densenet121", 28, 29, marks=pytest.mark.slow),
        pytest.param("torchvision:convnext_tiny", 28, 32, marks=pytest.mark.slow),
        pytest.param("torchvision:maxvit_t", 28, 221, marks=pytest.mark.slow),
        ("torchvision:googlenet", 8, 15),
    ],
)
def test_a_model_that_needs_larger_images_says_which_size_to_set(name: str, pixels: int, needed: int) -> None:
    with pytest.raises(InputError) as refused:
        build(name, {}, Form("image", (1, pixels, pixels)), 10)
    text = str(refused.value)
    assert f"model.name = '{name}' cannot be built for images of 1x{pixels}x{pixels}" in text
    assert f"it takes images of 1x{needed}x{needed}; set data.size = {needed}" in text


@pytest.mark.parametrize(("name", "pixels"), [("swin_t", 28), ("googlenet", 32)])
def test_a_model_of_torchvision_takes_the_size_that_it_needs(name: str, pixels: int) -> None:
    assert build(f"torchvision:{name}", {}, Form("image", (1, pixels, pixels)), 4).classifier.out_features == 4


def test_a_model_that_no_size_helps_gives_its_own_reason(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text("def build(shape, classes):\n    raise ValueError('three classes, please')\n")
    with pytest.raises(InputError, match="1x8x8 and 10 classes: three classes, please$"):
        build(f"{tmp_path / 'odd.py'}:build", {}, Form("image", (1, 8, 8)), 10)


def test_a_projection_head_has_two_layers_and_its_width_is_checked() -> None:
    model = build("mlp", {"hidden": [12], "projection": 5}, Form("image", (1, 8, 8)), 7)
    assert model.features(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    extra = sum(p.numel() for p in model.parameters()) - sum(
        p.numel() for p in build("mlp", {"hidden": [12]}, Form("image", (1, 8, 8)), 7).parameters()
    )
    assert extra == (12 * 12 + 12) + (12 * 5 + 5) + (5 * 7 + 7) - (12 * 7 + 7)
    for wrong in (0, True, "wide"):
        with pytest.raises(InputError, match="model.projection = .* 1 or more"):
            build("mlp", {"projection": wrong}, Form("image", (1, 8, 8)), 7)


def test_a_projection_head_needs_a_linear_classifier(tmp_path: Path) -> None:
    file = tmp_path / "odd.py"
    file.write_text(
        "from torch import nn\n"
        "class Deep(nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.features, self.classifier = nn.Flatten(), nn.Sequential(nn.Linear(64, classes))\n"
        "    def forward(self, x):\n"
        "        return self.classifier(self.features(x))\n"
        "def deep(shape, classes):\n"
        "    return Deep(classes)\n"
    )
    with pytest.raises(InputError, match="needs a classifier that is one linear layer"):
        build(f"{file}:deep", {"projection": 5}, Form("image", (1, 8, 8)), 7)


def test_weights_are_channels_last_where_the_model_can_do_with_it(tmp_path: Path) -> None:
    assert (
        build("convnet", {}, Form("image", (3, 32, 32)), 10)
        .features[0]
        .weight.is_contiguous(memory_format=torch.channels_last)
    )
    file = tmp_path / "viewing.py"
    file.write_text(
        "import torch\n"
        "class Viewing(torch.nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.convolution = torch.nn.Conv2d(3, 4, 3)\n"
        "        self.classifier = torch.nn.Linear(144, classes)\n"
        "    def features(self, images):\n"
        "        return self.convolution(images).view(len(images), -1)\n"
        "    def forward(self, images):\n"
        "        return self.classifier(self.features(images))\n"
        "def viewing(shape, classes):\n"
        "    return Viewing(classes)\n"
    )
    model = build(f"{file}:viewing", {}, Form("image", (3, 8, 8)), 10)
    assert model.convolution.weight.is_contiguous()
    assert model(torch.ones(5, 3, 8, 8)).shape == (5, 10)


def test_filling_a_model_is_load_state_dict() -> None:
    model, other = (build("resnet8", {}, Form("image", (3, 8, 8)), 10) for _ in range(2))
    weights = {name: torch.full(tensor.shape, 2, dtype=tensor.dtype) for name, tensor in model.state_dict().items()}
    fill(model, weights)
    other.load_state_dict(weights)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    with pytest.raises(RuntimeError, match="size mismatch for classifier.bias"):
        fill(model, {**weights, "classifier.bias": torch.ones(1)})
    with pytest.raises(RuntimeError, match="Missing key"):
        fill(model, {name: tensor for name, tensor in weights.items() if name != "classifier.bias"})


ODD = """
import torch
from torch import nn
from fedkd import Classifier

class Odd(Classifier):
    def __init__(self, pixels, classes):
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(pixels, 8), nn.BatchNorm1d(8), nn.ReLU()), 8, classes)
        self.again = self.features[1]  # one module under two names
        self.classifier.bias = self.features[1].bias if classes == 8 else self.classifier.bias
        self.unused = nn.Linear(3, 3)
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("mask", torch.tensor([True, False]))

def build(shape, classes):
    return Odd(shape[0] * shape[1] * shape[2], classes)

def frozen(shape, classes):
    return build(shape, classes).requires_grad_(False)
"""


def test_a_tensor_under_several_names_has_one_in_the_state(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    model = build(f"{tmp_path / 'odd.py'}:build", {}, Form("image", (1, 8, 8)), 8)
    state = model.state_dict()
    assert "features.1.weight" in state
    assert not {"again.weight", "again.bias", "classifier.bias"} & state.keys()
    changed = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    for load in (model.load_state_dict, lambda weights: fill(model, weights)):
        load(changed)
        assert model.again.weight.equal(changed["features.1.weight"])
        assert model.classifier.bias.equal(changed["features.1.bias"])


@pytest.mark.parametrize("strategy", ["fedavg", "feddyn", "scaffold", "fednova", "fedftg", "FedAdam", "FedAvgM"])
def test_server_steps_treat_odd_tensors_as_what_they_are(tiny: Make, tmp_path: Path, strategy: str) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    table = {"name": strategy, "iterations": 2, "base": "fedavg"} if strategy == "fedftg" else {"name": strategy}
    if strategy[0] == "F":
        table = {"name": f"flwr.serverapp.strategy:{strategy}"}
    config = tiny({"model": f"{tmp_path / 'odd.py'}:build", "strategy": table})
    assert run(config, tmp_path / "run")["failures"] == 0
    weights = server_state(tmp_path / "run")["base" if strategy == "fedftg" else "weights"]
    weights = weights["weights"] if strategy == "fedftg" else weights
    assert "again.weight" not in weights
    assert weights["frozen"].tolist() == [1, 1, 1, 1]
    assert (weights["steps"].dtype, int(weights["steps"])) == (torch.int64, 7)
    assert weights["mask"].tolist() == [True, False]
    assert bool((weights["features.2.running_var"] > 0).all())


def test_a_model_of_frozen_parameters_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    with pytest.raises(InputError, match="no parameter that can be trained"):
        build(f"{tmp_path / 'odd.py'}:frozen", {}, Form("image", (1, 8, 8)), 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.batch_size": 1}, "train.batch_size = 1: .*odd.py:build has batch norm of vectors"),
        (
            {"data.partition": {"scheme": "client_dirichlet", "clients": 3, "alpha": 1.0, "size": 1}},
            "a node has one image",
        ),
    ],
)
def test_batch_norm_of_vectors_needs_two_images(tiny: Make, tmp_path: Path, changes: dict, message: str) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    config = tiny({"model": f"{tmp_path / 'odd.py'}:build"} | changes)
    with pytest.raises(InputError, match=message):
        run(config, tmp_path / "run")
