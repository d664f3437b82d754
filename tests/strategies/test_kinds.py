"""Which strategies serve which kinds of samples: the table of docs/data.md, and runs of each kind."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import HOME, lines
from PIL import Image

from fedkd.config import parse_config
from fedkd.core.setup import make_setup
from fedkd.errors import InputError
from fedkd.registry import find, names
from fedkd.runs.run import run

ORDER = ("image", "table", "series", "tokens", "array")
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "table": ("heart", {"name": "table_mlp", "hidden": [16]}),
    "series": ("spoken_digits", {"name": "inception_small", "filters": 4}),
    "tokens": ("sentences", {"name": "text_cnn", "width": 8, "filters": 8}),
    "image": ("digits_float", {"name": "mlp", "hidden": [16]}),
}
MORE: dict[str, dict[str, Any]] = {  # what keeps a method fast, or what it needs
    "fedftg": {"iterations": 2, "batch_size": 16, "student_steps": 2},
    "fedx": {"base": {"name": "simclr", "width": 16, "probe_epochs": 2}},
    "fedgen": {},
    "feddf": {"steps": 4},
    "fedlgd": {
        "initial_steps": 2,
        "ipc": 1,
        "server_ipc": 1,
        "local_steps": 1,
        "global_steps": 1,
        "gap": 1,
        "show_local": True,
    },
    "fedavg_virtual": {"initial_steps": 2, "ipc": 1, "initial": "real", "show_local": True},
    "vhl": {"noise_per_class": 4, "noise_batch_size": 8, "generator_width": 8},
}


def config_of(kind: str, strategy: str, **changes: Any) -> dict[str, Any]:
    name, model = SETS[kind]
    scheme = {"scheme": "natural"} if kind in ("table", "series", "tokens") else {"scheme": "iid", "clients": 3}
    data = {"name": name, "partition": scheme, "train_per_class": 60, "test_per_class": 20}
    if strategy in ("knfu", "feddf", "dsfl", "fedmd"):
        data["public"] = {"size": 20}
    sgd = {"name": "sgd", "lr": 0.05}
    return {
        "rounds": 2, "data": data, "model": model, "train": {"optimizer": sgd, "steps": 2, "batch_size": 8},
        "strategy": {"name": strategy, **MORE.get(strategy, {})}, "evaluate": {"every": 2}, **changes,
    }  # fmt: skip


def test_the_table_of_the_docs_is_what_the_strategies_say() -> None:
    text = (HOME / "docs" / "data.md").read_text()
    found: dict[str, frozenset[str]] = {}
    for row in re.findall(
        r"^\| (`.*`) \| ((?:yes|no) \| (?:yes|no) \| (?:yes|no) \| (?:yes|no) \| (?:yes|no)) \|", text, re.M
    ):
        served = frozenset(kind for kind, said in zip(ORDER, row[1].split(" | "), strict=True) if said == "yes")
        found |= dict.fromkeys(re.findall(r"`(\w+)`", row[0]), served)
    assert found == {name: find("strategies", name, "x").kinds for name in names("strategies")}


SERVED = [
    (kind, name)
    for kind in ("table", "series", "tokens")
    for name in ("fedavg", "knfu", "fedproto", "fedgen", "feddf", "fedx", "fedftg", "fedlgd", "fedavg_virtual", "vhl")
    if kind in find("strategies", name, "x").kinds
]


@pytest.mark.parametrize(("kind", "name"), SERVED)
def test_a_run_of_each_kind(kind: str, name: str, tmp_path: Path) -> None:
    summary = run(parse_config(config_of(kind, name)), tmp_path / "run")
    assert (summary["status"], [line["failures"] for line in lines(tmp_path / "run")]) == ("completed", [[]] * 3)


@pytest.mark.parametrize("kind", ["table", "series", "tokens"])
def test_engines_agree(kind: str, tmp_path: Path) -> None:
    found = []
    for engine in ({"name": "inline"}, {"name": "vectorised", "clients_per_step": 3}):
        run(parse_config(config_of(kind, "fedavg", engine=engine)), tmp_path / engine["name"])
        found.append(lines(tmp_path / engine["name"])[-1]["metrics"])
    assert found[0].keys() == found[1].keys()
    assert all(abs(value - found[1][name]) < 0.02 for name, value in found[0].items())


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("kind", ["table", "series", "tokens"])
def test_ray_gives_the_bytes_of_inline(kind: str, tmp_path: Path) -> None:
    for engine in ({"name": "inline"}, {"name": "ray", "workers": 2}):
        run(parse_config(config_of(kind, "knfu", engine=engine)), tmp_path / engine["name"])
    first, second = (
        [{key: value for key, value in line.items() if key != "seconds"} for line in lines(tmp_path / name)]
        for name in ("inline", "ray")
    )
    assert first == second


VIRTUAL = ("fedlgd", "fedavg_virtual", "vhl")


@pytest.mark.parametrize("name", VIRTUAL)
def test_methods_that_change_samples_serve_arrays_too(name: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    arrays = {f"x_{part}": draw.normal(size=(90, 2, 3, 2, 2)).astype(np.float32) for part in ("train", "test")}
    np.savez(tmp_path / "set.npz", **arrays, y_train=np.arange(90) % 3, y_test=np.arange(90) % 3)
    config = config_of("image", name, model={"name": "mlp", "hidden": [8]})
    partition = {"scheme": "iid", "clients": 3}
    config["data"] = {"file": str(tmp_path / "set.npz"), "kind": "array", "partition": partition}
    summary = run(parse_config(config), tmp_path / "run")
    assert (summary["status"], [line["failures"] for line in lines(tmp_path / "run")]) == ("completed", [[]] * 3)


@pytest.mark.parametrize("kind", ["table", "series"])
@pytest.mark.parametrize("name", VIRTUAL)
def test_pictures_of_virtual_samples_are_kept(kind: str, name: str, tmp_path: Path) -> None:
    run(parse_config(config_of(kind, name)), tmp_path / "run")
    kept = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    shown = {"fedlgd": {"global-virtual", "local-0"}, "fedavg_virtual": {"local-0"}, "vhl": {"noise"}}
    assert shown[name] <= kept


@pytest.mark.parametrize("name", VIRTUAL)
def test_methods_that_change_samples_are_refused_for_texts(name: str) -> None:
    setup = make_setup(parse_config(config_of("tokens", name)))
    why = "random token ids are no text" if name == "vhl" else "token ids have no gradient"
    with pytest.raises(InputError, match=rf"strategy.name = '{name}' serves samples of kind .* are texts \({why}\)"):
        setup.check()


@pytest.mark.parametrize("name", ["fedlgd", "fedavg_virtual"])
def test_virtual_rows_need_a_model_that_takes_probabilities(name: str) -> None:
    config = config_of("table", name, model={"name": "mlp", "hidden": [8]})
    with pytest.raises(InputError, match="model.name = 'mlp': virtual rows .* which this model cannot take; set table"):
        make_setup(parse_config(config)).check()


def test_groups_of_images_are_refused_for_rows() -> None:
    config = config_of("table", "fedlgd")
    config["strategy"] = {**config["strategy"], "augment": ["flip"]}
    with pytest.raises(
        InputError, match=r"strategy.augment = \['flip'\]: the samples are of kind 'table'; valid: noise"
    ):
        make_setup(parse_config(config)).check()


@pytest.mark.parametrize("kind", ["table", "series"])
def test_virtual_samples_below_other_methods(kind: str, tmp_path: Path) -> None:
    for base in ({"name": "vhl", **MORE["vhl"]}, {"name": "moon"}):
        config = config_of(kind, "fedavg_virtual")
        config["strategy"] = {**config["strategy"], "base": base}
        summary = run(parse_config(config), tmp_path / base["name"])
        assert (summary["status"], summary["failures"]) == ("completed", 0)
    config["strategy"] = {**config["strategy"], "base": {"name": "simclr"}}
    with pytest.raises(InputError, match="strategy.base.name = 'simclr': its views are of raw samples"):
        make_setup(parse_config(config)).check()


@pytest.mark.parametrize("kind", ["table", "series"])
def test_engines_agree_on_virtual_samples(kind: str, tmp_path: Path) -> None:
    found = []
    for engine in ({"name": "inline"}, {"name": "vectorised", "clients_per_step": 3}):
        run(parse_config(config_of(kind, "fedlgd", engine=engine)), tmp_path / engine["name"])
        found.append(lines(tmp_path / engine["name"])[-1]["metrics"])
    assert all(abs(value - found[1][name]) < 0.02 for name, value in found[0].items())


def test_crop_flip_is_for_images() -> None:
    config = config_of("series", "fedavg")
    config["data"]["augment"] = "crop_flip"
    with pytest.raises(InputError, match="data.augment = 'crop_flip' is for images; the samples are series"):
        make_setup(parse_config(config)).check()


def test_fedftg_needs_a_model_that_takes_probabilities() -> None:
    config = config_of("table", "fedftg", model={"name": "mlp", "hidden": [8]})
    with pytest.raises(InputError, match="which this model cannot take; set table_mlp"):
        make_setup(parse_config(config)).check()


def test_fedftg_needs_a_model_that_takes_texts_as_probabilities(tmp_path: Path) -> None:
    table = {"model_type": "distilbert", "dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8, "vocab_size": 5000}
    (tmp_path / "config.json").write_text(json.dumps(table))
    config = config_of("tokens", "fedftg", model={"name": f"transformers:{tmp_path}"})
    why = "makes texts as probabilities over the vocabulary, which this model cannot take; set text_cnn or text_transf"
    with pytest.raises(InputError, match=rf"model.name = 'transformers:.*': the generator of fedftg {why}"):
        make_setup(parse_config(config)).check()


@pytest.mark.parametrize("base", ["fedftg", "weight_ema"])
def test_generated_texts_are_shown_as_words(base: str, tmp_path: Path) -> None:
    config = config_of("tokens", "fedftg")
    config["model"] = {"name": "text_transformer", "width": 8, "layers": 1}
    if base == "weight_ema":
        config["strategy"] = {"name": base, "base": config["strategy"]}
    summary = run(parse_config(config), tmp_path / "run")
    assert (summary["status"], summary["failures"]) == ("completed", 0)
    with Image.open(tmp_path / "run" / "figures" / "generated" / "round-000002.png") as strip:
        assert json.loads(strip.info["captions"]) == ["negative", "positive"]
        pixels = np.asarray(strip)
    assert pixels.shape == (132, 2 * 168, 3)
    assert all(half.min() < 128 < half.max() for half in np.split(pixels, 2, axis=1))


def test_notes_are_in_the_summary(tmp_path: Path) -> None:
    summary = run(parse_config(config_of("table", "fedavg")), tmp_path / "run")
    assert any("'ca'" in note and "missing" in note for note in summary["data_notes"])


def test_vhl_refuses_images_that_are_unlike_its_noise() -> None:
    setup = make_setup(parse_config(config_of("image", "vhl")))
    with pytest.raises(InputError, match="noise images have 8 bits and 1 or 3 channels.* images of 1x8x8, floats"):
        setup.check()
