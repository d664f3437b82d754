"""The Python interface: runs, rounds, results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import TINY, lines, merged

import fedkd
from fedkd import InputError

QUICK = merged(TINY, {"strategy": "knfu", "data.public": {"size": 40}, "rounds": 2, "evaluate.every": 1})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> fedkd.Run:
    path = tmp_path_factory.mktemp("runs") / "run"
    return fedkd.run(QUICK, out=path, show=False, checkpoint={"best": "personal/loss"})


def test_a_config_comes_from_a_file_a_name_a_table_or_a_config(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('model = "mlp"\nstrategy = "local"\n[data]\nname = "digits"\n'
                                       'partition = { scheme = "iid", clients = 3 }\n')  # fmt: skip
    own = fedkd.make_config(tmp_path / "own.toml", rounds=3)
    assert (own.rounds, own.strategy.name) == (3, "local")
    assert fedkd.make_config(own, rounds=4).rounds == 4
    assert fedkd.make_config(QUICK).strategy.name == "knfu"
    shipped = fedkd.make_config("knfu/quick", strategy={"beta": 3.0}, train={"optimizer": {"lr": 0.5}})
    assert shipped.strategy.options["beta"] == 3.0
    assert shipped.train.optimizer.lr == 0.5
    assert shipped.train.optimizer.name == fedkd.make_config("knfu/quick").train.optimizer.name


def test_another_strategy_or_optimiser_does_not_keep_options_of_the_one_before() -> None:
    found = fedkd.make_config("knfu/quick", strategy="fedmd", train={"optimizer": {"name": "adam", "lr": 0.1}})
    assert (found.strategy.name, found.strategy.options) == ("fedmd", {})
    assert found.train.optimizer.name == "adam"


def test_wrong_keys_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rounds = 0"):
        fedkd.run(QUICK, out=tmp_path / "run", rounds=0)
    with pytest.raises(InputError, match="no config of this name comes with fedkd"):
        fedkd.run("knfu/quickest", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_has_its_metrics_as_a_table_of_rounds_and_nodes(done: fedkd.Run) -> None:
    table, kept = done.metrics, lines(done.path)
    whole = table[table.node.isna()].reset_index()
    assert list(whole["round"]) == [0, 1, 2]
    for name in ("personal/accuracy", "personal_after_fit/accuracy"):
        wanted = [line["metrics"].get(name, np.nan) for line in kept]
        assert np.array_equal(whole[name].to_numpy(), wanted, equal_nan=True)
    last = table[(table["round"] == 2) & table.node.notna()].set_index("node")["personal/accuracy"]
    assert {str(node): value for node, value in last.items()} == kept[-1]["nodes"]["personal/accuracy"]
    assert whole.bytes_up.tolist() == [sum(line["bytes"]["up"].values()) for line in kept]
    assert table[table.node.notna()].seconds.isna().all()


def test_a_run_shows_itself(done: fedkd.Run) -> None:
    assert done.summary == json.loads((done.path / "summary.json").read_text())
    assert repr(done).endswith("knfu, 2 rounds, completed")
    page = done._repr_html_()
    assert "<td>personal/accuracy</td>" in page
    assert "data:image/png;base64," in page
    assert {"curves", "accuracy", "loss"} <= set(done.figures)
    figure: Any = done.figures["loss"]
    assert len(figure.axes[0].lines) == 1  # of the nodes
    assert figure._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(KeyError, match="accurcy; this run has"):
        done.figures["accurcy"]


def test_a_notebook_shows_the_progress_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class ZMQInteractiveShell:
        """The shell of a notebook's kernel."""

    handle = SimpleNamespace(update=shown.append)
    display = SimpleNamespace(HTML=str, display=lambda text, display_id: shown.append(text) or handle)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=ZMQInteractiveShell, display=display))
    fedkd.run(QUICK, out=tmp_path / "run", rounds=1)
    assert shown[0].startswith('<progress value="0" max="1"></progress> round 0/1 personal/accuracy 0.')
    assert shown[-1].startswith('<progress value="1" max="1"></progress> round 1/1 personal/accuracy 0.')


def test_rounds_can_be_looked_at_and_stopped_and_the_run_goes_on(done: fedkd.Run, tmp_path: Path) -> None:
    seen: list[int] = []
    for state in fedkd.rounds(QUICK, out=tmp_path / "run", checkpoint={"best": "personal/loss"}):
        seen.append(state.number)
        if state.number == 1:
            assert state.metrics == lines(tmp_path / "run")[-1]["metrics"]
            assert state.model(node=2).predict(np.zeros((1, 8, 8), np.uint8)).probabilities.shape == (1, 10)
            break
    assert seen == [0, 1]
    assert fedkd.Run(tmp_path / "run").summary["status"] == "interrupted"
    again = fedkd.resume(tmp_path / "run", show=False)
    assert again.summary["status"] == "completed"
    assert lines(again.path) == lines(done.path)


def test_a_run_is_resumed_for_more_rounds(done: fedkd.Run, tmp_path: Path) -> None:
    run = fedkd.run(QUICK, out=tmp_path / "run", show=False, rounds=1)
    assert fedkd.resume(run, rounds=2, evaluate={"every": 1}, show=False).summary["rounds"] == 2
    assert lines(run.path) == lines(done.path)
    with pytest.raises(InputError, match="A run that goes on may change rounds"):
        fedkd.resume(run, train={"batch_size": 7}, show=False)


def test_runs_are_compared(done: fedkd.Run, tmp_path: Path) -> None:
    local = fedkd.run(QUICK, out=tmp_path / "local", show=False, strategy="local", checkpoint={"best": "personal/loss"})
    found = fedkd.compare([done, local.path], baseline="local", columns=["seeds", "final"], names={"knfu": "KnFu"})
    assert list(found.table.columns) == ["strategy", "seeds", "final"]
    assert list(found.table["strategy"]) == ["KnFu", "local"]
    assert found.table["final"][0] == f"{100 * done.summary['final']['personal/accuracy']:.1f}"
    assert r"\toprule" in found.to_latex()
    assert "<td>KnFu</td>" in found._repr_html_()
    with pytest.raises(InputError, match="fedmd"):
        fedkd.compare([done, local], baseline="fedmd")
    with pytest.raises(InputError, match="There is no run to show"):
        fedkd.compare([tmp_path / "nowhere"])


def test_an_interrupt_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedkd.runs.progress.Progress.update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fedkd.run(QUICK, out=tmp_path / "run")
    assert f"Continue with fedkd.resume({str(tmp_path / 'run')!r})." in capsys.readouterr().err
    assert fedkd.resume(tmp_path / "run", show=False).summary["status"] == "completed"


def test_models_are_written_read_and_measured_by_paths_as_text(done: fedkd.Run, tmp_path: Path) -> None:
    model, file = done.model(node=1), str(tmp_path / "m.safetensors")
    fedkd.write_model(model, file)
    again = fedkd.read_model(file)
    found = [fedkd.evaluate(again, data)["scores"] for data in (str(done.path), done.path)]
    assert found[0] == found[1] == fedkd.evaluate(model, str(done.path))["scores"]
    with pytest.raises(InputError, match="format: unknown 'onnxx'; did you mean 'onnx'"):
        fedkd.write_model(model, file, "onnxx")  # type: ignore[arg-type]


def test_a_node_or_a_round_that_is_none_is_refused(done: fedkd.Run, tmp_path: Path) -> None:
    for node in (1.5, "1", -1, 6):
        with pytest.raises(InputError, match=f"node {node!r}: the federation has the nodes 0 to 5"):
            done.model(node=node)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="which: unknown 'beste'; did you mean 'best'"):
        done.model(node=1, which="beste")  # type: ignore[arg-type]
    of_numpy = done.model(node=np.int64(1))  # type: ignore[arg-type]
    assert fedkd.read_model(fedkd.write_model(of_numpy, tmp_path / "m.safetensors").model).about.card["node"] == 1
