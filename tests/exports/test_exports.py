"""Models out of runs: every format, predictions, scores; and what is refused."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TINY, lines, merged
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file
from sklearn.metrics import accuracy_score, f1_score
from torch import nn
from typer.testing import CliRunner

from fedkd import InputError
from fedkd.cli import app
from fedkd.config import Config, SetsConfig, parse_config, read_config
from fedkd.core.setup import make_setup
from fedkd.data.spec import DataSpec
from fedkd.exports.evaluating import evaluate
from fedkd.exports.formats import ENDINGS, write_model
from fedkd.exports.loading import read_model
from fedkd.exports.new_samples import new_samples
from fedkd.exports.of_run import model_of_run, models_of_run, real_samples
from fedkd.runs.run import run

Make = Callable[..., Config]
RUNNER = CliRunner()
CHANGES = {
    "strategy": "knfu", "data.public": {"size": 40}, "rounds": 2, "evaluate.every": 1,
    "checkpoint": {"best": "personal/accuracy"}, "model": {"names": ["mlp", "cnn"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    run(parse_config(merged(TINY, CHANGES)), path)
    return path


def digits(path: Path) -> Any:
    return make_setup(read_config(path / "config.toml")).environment.data


@pytest.mark.parametrize("node", [0, 1])
def test_a_nodes_model_is_the_one_that_the_run_measured(done: Path, node: int) -> None:
    """Without the run's data, which are then used here to measure it again."""
    model, data = model_of_run(done, node), digits(done)
    own = data.test_of(node)
    found = model.predict(own.inputs)
    accuracy = np.mean([data.classes.index(label) for label in found.labels] == own.labels)
    assert accuracy == lines(done)[-1]["nodes"]["personal/accuracy"][str(node)]
    assert not model.training
    assert model.about.architecture.name == ("mlp", "cnn")[node]


def test_the_servers_model_is_the_one_that_the_run_measured(tiny: Make, tmp_path: Path) -> None:
    run(tiny({"rounds": 1, "strategy": "fedavg"}), tmp_path / "run")
    data = digits(tmp_path / "run")
    found = evaluate(model_of_run(tmp_path / "run"), str(tmp_path / "run"))
    assert found["scores"]["accuracy"] == lines(tmp_path / "run")[-1]["metrics"]["global/accuracy"]
    of_node = evaluate(model_of_run(tmp_path / "run", 2), str(tmp_path / "run"))["nodes"]
    kept = lines(tmp_path / "run")[-1]["nodes"]["personal/accuracy"]
    assert [of_node[f"node {n}"]["accuracy"] for n in range(data.clients)] == pytest.approx([*kept.values()], abs=1e-12)


def test_the_best_round_and_the_last_are_other_models(done: Path, tmp_path: Path) -> None:
    best = json.loads((done / "summary.json").read_text())["best_round"]["round"]
    assert model_of_run(done, 0, "best").about.card["round"] == best
    assert model_of_run(done, 0).about.card["round"] == 2
    copied = Path(shutil.copytree(done, tmp_path / "run"))
    shutil.rmtree(copied / "checkpoints/best")
    with pytest.raises(InputError, match="has no best round: set checkpoint.best"):
        model_of_run(copied, 0, "best")


@pytest.mark.parametrize("format", ENDINGS)
@pytest.mark.parametrize("node", [0, 1])
def test_a_file_of_any_format_gives_the_same_predictions(done: Path, node: int, format: Any, tmp_path: Path) -> None:
    model, images = model_of_run(done, node), real_samples(done)
    written = write_model(model, tmp_path / f"m{ENDINGS[format]}", format, checked_on=images)
    again = read_model(written.model, trust_code=True)
    assert np.abs(again.predict(images).probabilities - model.predict(images).probabilities).max() < 1e-6
    assert (again.classes, again.preprocessing) == (model.classes, model.preprocessing)
    assert again.about.card == model.about.card
    assert (written.difference is not None and written.difference < 1e-4) == (format == "onnx")
    text = written.card.read_text()
    assert "license: unknown" in text
    assert f"| personal/accuracy | {model.about.card['metrics']['personal/accuracy']:.3f} |" in text


def test_a_safetensors_file_is_loaded_without_us(tmp_path: Path, tiny: Make) -> None:
    """The names are those of the module, also for a model of a library whose head was found."""
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5))\n"
        "        self.out = nn.Linear(5, classes)\n"
        "    def forward(self, x):\n"
        "        return self.out(self.body(x).relu())\n"
        "def build(shape, classes):\n"
        "    return Net(classes)\n"
    )
    run(tiny({"rounds": 1, "strategy": "fedavg", "model": f"{file}:build"}), tmp_path / "run")
    model = model_of_run(tmp_path / "run")
    path = write_model(model, tmp_path / "net.safetensors").model
    scope: dict[str, Any] = {}
    exec(file.read_text(), scope)  # the user's own class, without fedkd
    with torch.random.fork_rng():
        net: nn.Module = scope["Net"](10)
    load_model(net, path)
    batch = torch.zeros(3, 1, 8, 8)
    assert torch.equal(net.eval()(batch), model(batch))
    with pytest.raises(InputError, match="code of its own; add --trust-code"):
        read_model(path)
    assert torch.equal(read_model(path, trust_code=True)(batch), model(batch))


def test_an_encoder_gives_features_and_refuses_to_predict(tiny: Make, tmp_path: Path) -> None:
    run(tiny({"rounds": 1, "strategy": {"name": "fedx", "base": {"name": "simclr"}}}), tmp_path / "run")
    model = model_of_run(tmp_path / "run")
    path = write_model(model, tmp_path / "encoder.safetensors").model
    images = real_samples(tmp_path / "run")
    assert images is not None
    features = read_model(path).outputs(images)
    assert torch.equal(features, model.outputs(images))
    assert features.shape[1] != 10
    with pytest.raises(InputError, match="this model is an encoder"):
        model.predict(images)


def test_a_method_without_a_global_model_wants_a_node(done: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="knfu has no global model; name a node"):
        model_of_run(done)
    with pytest.raises(InputError, match="node 99: the federation has the nodes 0 to 5"):
        model_of_run(done, 99)
    assert sorted(models_of_run(done)) == list(range(6))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-40], "it is no model in safetensors, or is damaged"),
        (lambda b: b.replace(b'form\\": 1', b'form\\": 7'), "its form is 7, this version of fedkd reads 1"),
        (lambda b: b.replace(b'\\"padded\\"', b'\\"paddel\\"'), "it is no model that fedkd has written: padded"),
    ],
)
def test_a_damaged_file_is_refused_by_name(done: Path, damage: Any, message: str, tmp_path: Path) -> None:
    path = write_model(model_of_run(done, 0), tmp_path / "m.safetensors").model
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=re.escape(str(path))) as refused:
        read_model(path)
    assert message in str(refused.value)


def test_files_that_may_run_code_are_only_read_if_they_are_trusted(done: Path, tmp_path: Path) -> None:
    for format in ("torchscript", "torch.export"):
        path = write_model(model_of_run(done, 0), tmp_path / f"{format[:6]}{ENDINGS[format]}", format).model  # type: ignore[arg-type, index]
        with pytest.raises(InputError, match=f"a file of {re.escape(format)} can run code .* add --trust-code"):
            read_model(path)


def test_images_of_other_sizes_colours_and_ranges_are_converted_with_a_note(done: Path, tmp_path: Path) -> None:
    model, images = model_of_run(done, 0), real_samples(done)
    assert images is not None
    plain = model.predict(images)
    assert plain.notes == ()
    shares = model.predict(images[:, 0] / 255)
    assert (shares.labels, shares.notes) == (plain.labels, ("values from 0 to 1 are taken as shares of 255",))
    colours = model.predict(np.repeat(images, 3, axis=1))
    assert (colours.labels, colours.notes) == (plain.labels, ("colour images become grey",))
    for place, image in enumerate(images):
        Image.fromarray(image[0]).save(tmp_path / f"{place:02}.png")
    assert model.predict(tmp_path).labels == plain.labels
    Image.fromarray(images[0, 0]).resize((16, 20)).save(tmp_path / "00.png")
    assert model.predict([tmp_path / "00.png"]).notes == ("images of another size are resized to 8 x 8",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.full((2, 8, 8), 300.0), "its values are 300 to 300; the model takes raw values, 0 to 255"),
        (np.zeros((2, 5, 8, 8)), "its images have 5 channels, the model takes 1"),
        (np.array(["a"]), "images are numbers"),
        ("nowhere.png", "nowhere.png: there is no such file or folder"),
    ],
)
def test_samples_that_are_no_images_are_refused_by_name(done: Path, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        model_of_run(done, 0).predict(given)


def test_an_image_that_cannot_be_read_is_named(done: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"bad.png: cannot identify image file"):
        model_of_run(done, 0).predict(tmp_path / "bad.png")


def test_the_command_line_goes_from_a_run_to_predictions_and_scores(done: Path, tmp_path: Path) -> None:
    def fedkd(*words: Any) -> str:
        result = RUNNER.invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        return result.output

    images = real_samples(done)
    assert images is not None
    np.save(tmp_path / "x.npy", images)
    said = fedkd("export", done, "--node", 1, "--which", "best", "-o", tmp_path / "m.onnx", "--licence", "MIT")
    assert "the largest difference of ONNX and PyTorch on 32 test samples is" in said
    assert "license: MIT" in (tmp_path / "m.onnx.md").read_text()
    fedkd("predict", tmp_path / "m.onnx", tmp_path / "x.npy", "-o", tmp_path / "p.csv")
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    found = model_of_run(done, 1, "best").predict(images)
    assert [row["label"] for row in rows] == found.labels
    assert float(rows[3]["p:7"]) == pytest.approx(found.probabilities[3, 7], abs=1e-5)
    assert "accuracy" in fedkd("evaluate", tmp_path / "m.onnx", done, "-o", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    test = digits(done).test
    labels = [int(label) for label in model_of_run(done, 1, "best").predict(test.inputs).labels]
    assert scores["accuracy"] == pytest.approx(accuracy_score(test.labels, labels))
    assert scores["macro_f1"] == pytest.approx(f1_score(test.labels, labels, average="macro"))
    fedkd("export", done, "--node", "all", "-o", tmp_path / "nodes")
    assert sorted(path.name for path in (tmp_path / "nodes").glob("*.safetensors")) == [
        f"node-{node}.safetensors" for node in range(6)
    ]
    assert load_file(tmp_path / "nodes/node-0.safetensors")


def test_nothing_is_overwritten_without_force(done: Path, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors.md").write_text("mine")
    words = ["export", str(done), "--node", "0", "-o", str(tmp_path / "m.safetensors")]
    refused = RUNNER.invoke(app, words)
    assert (refused.exit_code, "m.safetensors.md is there already; --force" in refused.output) == (2, True)
    assert not (tmp_path / "m.safetensors").exists()
    assert RUNNER.invoke(app, [*words, "--force"]).exit_code == 0
    assert (tmp_path / "m.safetensors.md").read_text() != "mine"


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change the table of a safetensors file, as a stranger may."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        table = json.loads(file.metadata()["fedkd"])
    change(table)
    save_file(tensors, path, metadata={"fedkd": json.dumps(table)})
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table["architecture"].update(hidden=[2_000_000_000]),
        lambda table: table["architecture"].update(hidden=[1] * 1000),
        lambda table: table.update(samples=re.sub(r"\b8\b", "20000", table["samples"])),
    ],
    ids=["wide", "deep", "large samples"],
)
def test_a_file_that_describes_a_huge_model_is_refused_before_it_is_made(
    done: Path, change: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedkd.exports.loading._MORE_BYTES", 2**16)  # so that a deep model is small
    path = rewritten(write_model(model_of_run(done, 0), tmp_path / "m.safetensors").model, change)
    with pytest.raises(InputError, match=r"m.safetensors: it describes a model of more than \d+ MB"):
        read_model(path)


def test_a_file_that_describes_huge_samples_is_refused(done: Path, tmp_path: Path) -> None:
    def change(table: dict[str, Any]) -> None:
        table["samples"] = re.sub(r"\b8\b", "1000000", table["samples"])

    path = rewritten(write_model(model_of_run(done, 0), tmp_path / "m.safetensors").model, change)
    with pytest.raises(InputError, match="its shape is that of samples with more than 1000000000 values"):
        read_model(path)


def test_a_file_cannot_have_a_library_load_weights_or_code(done: Path, tmp_path: Path) -> None:
    def change(table: dict[str, Any]) -> None:
        table["architecture"] = {"name": "timm:resnet18", "options": {"checkpoint_path": "weights.pth"}}

    path = rewritten(write_model(model_of_run(done, 0), tmp_path / "m.safetensors").model, change)
    with pytest.raises(InputError, match="model.options: checkpoint_path cannot be set: nothing is downloaded"):
        read_model(path)


def test_the_same_model_gives_the_same_file_of_safetensors(done: Path, tmp_path: Path) -> None:
    model = model_of_run(done, 0)
    files = [write_model(model, tmp_path / f"{i}.safetensors").model.read_bytes() for i in range(12)]
    assert len(set(files)) == 1


def test_a_model_with_frozen_parts_is_written_as_onnx(tiny: Make, tmp_path: Path) -> None:
    run(
        tiny({"rounds": 1, "strategy": "fedavg", "model": {"name": "mlp", "hidden": [4], "train": "head"}}),
        tmp_path / "run",
    )
    model, images = model_of_run(tmp_path / "run"), real_samples(tmp_path / "run")
    written = write_model(model, tmp_path / "m.onnx", "onnx", checked_on=images)
    assert written.difference is not None
    assert written.difference < 1e-5
    assert b"site-packages" not in written.model.read_bytes()  # nor other paths of this machine


def test_what_the_exporter_says_of_a_model_is_one_line_with_the_cause(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        try:
            raise KeyError("an operation")
        except KeyError as error:
            raise RuntimeError("\x1b[96mwhat to do\x1b[0m\n- report it") from error

    monkeypatch.setattr("torch.onnx.export", fail)
    with pytest.raises(InputError, match=r"^mlp cannot be written as onnx: KeyError: 'an operation'\.$"):
        write_model(model_of_run(done, 0), tmp_path / "m.onnx", "onnx")


def test_an_interrupt_leaves_the_file_that_was_there(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_model(model_of_run(done, 0), tmp_path / "m.safetensors").model
    before = path.read_bytes()

    def half(file: Any, content: bytes) -> None:
        file.write(content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr("fedkd.files.put", half)
    with pytest.raises(KeyboardInterrupt):
        write_model(model_of_run(done, 1), path, force=True)
    assert path.read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["m.safetensors", "m.safetensors.md"]


def test_folders_of_outputs_are_made_and_what_is_no_folder_is_refused(done: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", real_samples(done))
    (tmp_path / "file").write_text("mine")
    for words in (
        ["export", done, "--node", "0", "-o", "OUT/m.safetensors"],
        ["predict", done, tmp_path / "x.npy", "--node", "0", "-o", "OUT/p.csv"],
        ["evaluate", done, done, "--node", "0", "-o", "OUT/s.json"],
    ):
        given = [str(word).replace("OUT", str(tmp_path / "new" / str(words[0]))) for word in words]
        result = RUNNER.invoke(app, given)
        assert (result.exit_code, Path(given[-1]).is_file()) == (0, True), result.output
        result = RUNNER.invoke(app, [str(word).replace("OUT", str(tmp_path / "file")) for word in words])
        assert (result.exit_code, "file: the folder cannot be made: File exists" in result.output) == (2, True)
        result = RUNNER.invoke(app, [*given[:-1], str(tmp_path / "new"), "--format", "safetensors"][: len(given)])
        assert (result.exit_code, "Traceback" in result.output) == (2, False), result.output


def test_the_last_axis_has_the_channels_where_only_this_fits_the_model() -> None:
    """Images of 3 x 3 pixels and four channels: three rows are not taken for three channels."""
    spec = DataSpec(kind="image", shape=(4, 3, 3), largest=255.0)
    images = np.arange(2 * 36, dtype=np.uint8).reshape(2, 3, 3, 4)
    for given in (images, images.transpose(0, 3, 1, 2)):
        found = new_samples(given, spec, SetsConfig())
        assert np.array_equal(found.inputs, images.transpose(0, 3, 1, 2))
        assert found.notes == ()


def test_a_model_of_fedproto_predicts_the_nearest_prototype_which_the_run_measured(tiny: Make, tmp_path: Path) -> None:
    run(tiny({"rounds": 2, "strategy": {"name": "fedproto", "prototype_weight": 0.1}}), tmp_path / "run")
    data, kept = digits(tmp_path / "run"), lines(tmp_path / "run")[-1]["nodes"]
    assert kept["personal/accuracy"] != kept["personal_classifier/accuracy"]
    for node in range(data.clients):
        own = data.test_of(node)
        found = read_model(write_model(model_of_run(tmp_path / "run", node), tmp_path / f"{node}.safetensors").model)
        labels = [data.classes.index(label) for label in found.predict(own.inputs).labels]
        assert np.mean(labels == own.labels) == kept["personal/accuracy"][str(node)]


def test_a_path_that_cannot_be_looked_at_is_refused_on_one_line(done: Path, tmp_path: Path) -> None:
    long = "x" * 300
    for words in (
        ["predict", long, str(done), "-o", str(tmp_path / "p.csv")],
        ["predict", str(done), long, "--node", "0", "-o", str(tmp_path / "p.csv")],
        ["evaluate", str(done), long, "--node", "0"],
        ["export", str(done), "--node", "0", "-o", f"{long}.onnx"],
    ):
        result = RUNNER.invoke(app, words)
        assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
        assert result.output.startswith("fedkd: xxxx")
        assert result.output.endswith("File name too long.\n")


def test_predictions_name_files_of_any_name(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (b"caf\xe9.png", b"=1+1.png"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(os.fsdecode(name))
    words = ["predict", str(done), os.fsdecode(b"caf\xe9.png"), "=1+1.png", "--node", "0", "-o", "p.csv"]
    result = RUNNER.invoke(app, words)
    assert result.exit_code == 0, result.output
    with (tmp_path / "p.csv").open(encoding="utf-8") as file:
        assert [row["sample"] for row in csv.DictReader(file)] == ["caf\ufffd.png", "'=1+1.png"]


@pytest.mark.parametrize("format", ["onnx", "torchscript", "torch.export"])
def test_a_file_of_another_program_is_said_to_have_no_description(format: Any, tmp_path: Path) -> None:
    path, net, batch = tmp_path / f"m{ENDINGS[format]}", nn.ReLU(), torch.zeros(1, 2)
    if format == "onnx":
        from onnx import TensorProto, helper, save

        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
        opset = [helper.make_opsetid("", 17)]
        save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    elif format == "torchscript":
        with warnings.catch_warnings(action="ignore"):
            torch.jit.save(torch.jit.trace(net, batch), path)
    else:
        torch.export.save(torch.export.export(net, (batch,)), path)
    with pytest.raises(InputError, match=f"m{ENDINGS[format]}: it has no description of its model"):
        read_model(path, trust_code=True)


def test_a_damaged_file_of_torch_export_is_refused_without_more_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "m.pt2").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"m.pt2: it is no model in torch.export, or is damaged"):
        read_model(tmp_path / "m.pt2", trust_code=True)
    assert caplog.records == []


def test_scores_of_images_smaller_than_data_size_can_be(tiny: Make, tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    images = {part: draws.integers(0, 256, (60, 3, 3, 4), np.uint8) for part in ("x_train", "x_test")}
    np.savez(tmp_path / "set.npz", y_train=np.arange(60) % 3, y_test=np.arange(60) % 3, **images)
    data = {"file": str(tmp_path / "set.npz"), "partition": {"scheme": "iid", "clients": 2}}
    run(tiny({"rounds": 1, "strategy": "fedavg", "data": data}), tmp_path / "run")
    model = model_of_run(tmp_path / "run")
    found = evaluate(model, str(tmp_path / "set.npz"))["scores"]
    assert found["samples"] == 60
    assert found["accuracy"] == lines(tmp_path / "run")[-1]["metrics"]["global/accuracy"]


def test_long_series_and_texts_that_are_names_of_files_are_named(tmp_path: Path) -> None:
    spec = DataSpec(kind="series", shape=(2, 5))
    with pytest.raises(InputError, match="array: it has series of 7 steps; the model takes at most 5: cut them"):
        new_samples(np.zeros((3, 2, 7)), spec, SetsConfig())
    (tmp_path / "texts.csv").write_text("text\nhello\n")
    words = DataSpec(kind="tokens", shape=(4,), words=("<pad>", "<unknown>", "hello"), learned=True)
    found = new_samples(str(tmp_path / "texts.csv"), words, SetsConfig())
    assert len(found.inputs) == 1
    assert any("is taken as a text; for the texts in this file give a Path" in note for note in found.notes)
    assert new_samples("hello", words, SetsConfig()).notes == ()
