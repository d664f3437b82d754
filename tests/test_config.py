"""Run files: every wrong key is named, with the nearest valid one; what is resolved can be read again."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w
import torch
from conftest import TINY, merged

from fedkd.config import Config, parse_config, read_config, read_distill_config, to_table
from fedkd.core.setup import make_setup
from fedkd.core.wrapper import make_strategy
from fedkd.errors import InputError
from fedkd.models.build import build
from fedkd.registry import find, names, options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sede": 1}, r"sede: unknown key 'sede'; did you mean 'seed'\?"),
        ({"data.nam": "x"}, "data.nam: unknown key 'nam'; did you mean 'name'"),
        ({"train.optimizer.momentun": 0.9}, "momentun: unknown key 'momentun'; did you mean 'momentum'"),
        ({"data.public": {"siez": 3, "size": 3}}, "data.public.siez: unknown key 'siez'; did you mean 'size'"),
        ({"rounds": "5"}, "rounds = '5': .*integer"),
        ({"rounds": 0}, "rounds = 0: .*greater than or equal to 1"),
        ({"seed": -1}, "seed = -1"),
        ({"train.optimizer": {"name": "sgd", "lr": 0}}, "train.optimizer.sgd.lr = 0: .*greater than 0"),
        ({"train.optimizer": {"name": "sdg", "lr": 0.1}}, "'sgd', 'adam', 'adamw'"),
        ({"evaluate.fraction": 1.5}, "evaluate.fraction = 1.5"),
        ({"data.names": ["digits"]}, "set either name .* names .* or sites"),
        ({"model.names": ["mlp", "cnn"]}, "set either name .* or names"),
        ({"strategy": None}, "strategy: is missing"),
        ({"data.partition": None}, "data = .* partition is missing"),
        ({"data.channels": 2}, "data.channels = 2"),
    ],
)
def test_wrong_configs_are_refused_by_key(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_config(merged(TINY, changes))


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"name": "fedagv"}, "strategy.name: unknown 'fedagv'; did you mean 'fedavg'"),
        ({"name": "fedprox", "nu": 0.1}, "strategy.nu: unknown key 'nu'; did you mean 'mu'"),
        ({"name": "fedprox", "mu": -1.0}, "strategy.mu = -1.0: .*greater than or equal to 0"),
        ({"name": "fedmd", "digest": "mea"}, "strategy.digest = 'mea': .*'mae' or 'kl'"),
        ({"name": "flwr.serverapp.strategy:FedAdm"}, "has no 'FedAdm'"),
        ({"name": "flwr.serverapp.strategy:FedAdam", "etta": 1.0}, "did you mean 'eta'"),
        ({"name": "no.such.module:X"}, "cannot import 'no.such.module'"),
        ({"name": "no_such_file.py:X"}, "there is no file .*no_such_file.py"),
        ({"name": "fedkd.messages.payload:Payload"}, "is no Strategy"),
    ],
)
def test_wrong_strategies_are_refused_by_key(tiny: Callable[..., Config], strategy: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_strategy(tiny({"strategy": strategy}).strategy)


def test_a_strategy_file_without_the_class_says_what_it_defines(tiny: Callable[..., Config], tmp_path: Path) -> None:
    file = tmp_path / "method.py"
    file.write_text("class Mine: pass\ndef helper(): pass\n")
    with pytest.raises(InputError, match=r"method.py has no 'Yours'; it defines: Mine, helper\."):
        make_strategy(tiny({"strategy": {"name": f"{file}:Yours"}}).strategy)
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    with pytest.raises(InputError, match="broken.py cannot be loaded: ZeroDivisionError"):
        make_strategy(tiny({"strategy": {"name": f"{broken}:X"}}).strategy)


def test_overrides_change_one_key(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(TINY))
    config = read_config(
        path, ["strategy=fedprox", "strategy.mu=0.5", "rounds=7", "data.partition.alpha=0.1", "model=cnn"]
    )
    assert (config.strategy.name, config.strategy.options) == ("fedprox", {"mu": 0.5})
    assert config.rounds == 7
    assert config.data.partition.model_extra == {"clients": 6, "alpha": 0.1, "size": 24}
    assert config.model.architectures[0].name == "cnn"
    for wrong in ("rounds", "=3", "a..b=1", "rounds.x=1"):
        with pytest.raises(InputError, match="--set"):
            read_config(path, [wrong])


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("rounds = = 3")
    with pytest.raises(InputError, match="not a TOML file"):
        read_config(tmp_path / "bad.toml")
    with pytest.raises(InputError, match="There is no config"):
        read_config(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "strategy", ["fedavg", "fedprox", "fedmd", "local", "central", "flwr.serverapp.strategy:FedAdam"]
)
def test_the_resolved_config_is_complete_and_reads_back(tiny: Callable[..., Config], strategy: str) -> None:
    resolved = make_setup(tiny({"strategy": {"name": strategy}, "data.public": {"size": 100}})).environment.config
    table = to_table(resolved)
    assert parse_config(table) == resolved
    assert table["train"]["epochs"] == 1
    if strategy == "fedprox":
        assert table["strategy"] == {"name": "fedprox", "mu": 0.01, "official_quirks": False}


CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*/*.toml"))
DISTILLATIONS = [path for path in CONFIGS if path.parent.name == "distill"]


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if p not in DISTILLATIONS], ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_every_config_of_the_project_is_valid(path: Path) -> None:
    config = read_config(path)
    strategy, _ = make_strategy(config.strategy)
    assert strategy is not None
    folder = path.parent.name
    assert config.strategy.name == (path.stem if folder == "leaderboard" else folder) or folder == "flower"
    if (partition := config.data.partition) is not None:
        options(find("partitions", partition.scheme, "x"), partition.model_extra or {}, "x")
    options(find("engines", config.engine.name, "x"), config.engine.options, "x")
    with torch.random.fork_rng():
        for spec in config.model.architectures:
            build(spec.name, spec.options, (3, 32, 32), 10)


@pytest.mark.parametrize("path", DISTILLATIONS, ids=lambda p: p.stem)
def test_every_distillation_of_the_project_is_valid(path: Path) -> None:
    config = read_distill_config(path)
    options(find("distillers", config.distiller.name, "x"), config.distiller.options, "x")
    with torch.random.fork_rng():
        (spec,) = config.model.architectures
        build(spec.name, spec.options, (3, 32, 32), 10)


@pytest.mark.parametrize("name", names("strategies"))
def test_every_strategy_has_a_page_and_configs(name: str) -> None:
    home = Path(__file__).resolve().parents[1]
    page = {"feddistill_fl": "feddistill"}.get(name, name)
    assert f'`strategy.name = "{name}"`' in (home / "docs" / "methods" / f"{page}.md").read_text()
    assert f"| [`{name}`]({page}.md) |" in (home / "docs" / "methods" / "index.md").read_text()
    assert (home / "configs" / name / "quick.toml").is_file()
