"""Trackers: what TensorBoard, MLflow and W&B (offline) have kept of a run, read back by their own readers."""

from __future__ import annotations

import importlib.util
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedkd.config import Config
from fedkd.errors import InputError
from fedkd.runs.run import resume, run

Tiny = Callable[..., Config]


pytestmark = [
    # of third parties' own code
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.xdist_group("trackers"),
]


@pytest.fixture(autouse=True)
def _keeps_still(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_CONFIG_DIR": str(tmp_path / "wandb-config"), "WANDB_CACHE_DIR": str(tmp_path / "wandb-cache"),
        "WANDB_DATA_DIR": str(tmp_path / "wandb-data"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def continued(config: Config, folder: Path) -> dict[str, Any]:
    """Run two rounds, and then the second again and two more in the same folder."""
    run(config, folder)
    shutil.rmtree(max((folder / "checkpoints").glob("round-*")))  # so the second is run again
    (folder / "config.toml").write_text((folder / "config.toml").read_text().replace("rounds = 2", "rounds = 4"))
    return resume(folder)


def test_tensorboard_has_each_round_also_of_a_resumed_run(tiny: Tiny, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    summary = continued(tiny({"trackers": ["tensorboard"], "checkpoint.every": 1}), tmp_path / "run")
    kept = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    kept.Reload()
    events = kept.Scalars("personal/accuracy")
    assert [event.step for event in events] == [0, 1, 2, 3, 4]
    assert events[-1].value == pytest.approx(summary["final"]["personal/accuracy"])
    assert {"bytes/up", "bytes/down", "seconds/round", "failures", "log/train_loss"} <= set(kept.Tags()["scalars"])
    assert {"figures/curves", "figures/partition"} <= set(kept.Tags()["images"])


def test_mlflow_goes_on_in_the_same_run(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)  # with a database, MLflow keeps files in the current folder
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}" if _has_sqlalchemy() else f"file:{tmp_path / 'mlflow'}"
    config = tiny({"trackers": [{"name": "mlflow", "uri": uri, "experiment": "digits"}], "checkpoint.every": 1})
    summary = continued(config, tmp_path / "run")
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.info.status == "FINISHED"
    assert kept.data.params["strategy.name"] == "fedavg"
    history = client.get_metric_history(kept.info.run_id, "personal/accuracy")
    assert {metric.step for metric in history} == {0, 1, 2, 3, 4}
    assert kept.data.metrics["personal/accuracy"] == pytest.approx(summary["final"]["personal/accuracy"])
    figures = [file.path for file in client.list_artifacts(kept.info.run_id, "figures")]
    assert {"figures/curves.png", "figures/partition.png"} <= set(figures)


def test_a_server_that_is_away_is_not_waited_for_and_the_users_own_patience_counts(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    summary = run(tiny({"trackers": [{"name": "mlflow", "uri": "http://127.0.0.1:9"}]}), tmp_path / "run")
    assert summary["status"] == "completed"
    assert [record.getMessage()[:38] for record in caplog.records if "tracker" in record.getMessage()] == [
        "tracker mlflow failed and is not used "
    ]
    assert mlflow.environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() == 1
    assert mlflow.environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 3


def _has_sqlalchemy() -> bool:
    return importlib.util.find_spec("sqlalchemy") is not None


def test_wandb_keeps_an_offline_run_in_the_folder(tiny: Tiny, tmp_path: Path) -> None:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    summary = run(tiny({"trackers": [{"name": "wandb", "mode": "offline"}]}), tmp_path / "run")
    wandb.teardown()  # its own process writes the file; with its end all is there
    (log,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    found = []
    for data in logged_records(log.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        for item in record.history.item:
            if (item.key or ".".join(item.nested_key)) == "personal/accuracy":
                found.append(float(item.value_json))
    assert len(found) == 3
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/files/media/images/figures/curves_*.png"))
    assert found[-1] == pytest.approx(summary["final"]["personal/accuracy"])


def logged_records(log: bytes) -> Iterator[bytes]:
    """Yield the records of W&B's log: 7 bytes, then LevelDB's format: parts with heads of 7 bytes, blocks of 32 KiB."""
    place, record = 7, b""
    while place + 7 <= len(log):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768  # no head fits into the rest of a block
            continue
        length, kind = struct.unpack("<HB", log[place + 4 : place + 7])
        record += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


@pytest.mark.parametrize(
    ("trackers", "message"),
    [
        (["tensorbord"], "trackers.0: unknown 'tensorbord'; did you mean 'tensorboard'?"),
        ([{"name": "wandb", "mode": "loud"}], "trackers.0.mode = 'loud'"),
        (["tensorboard", {"name": "mlflow", "url": "x"}], "trackers.1.url: unknown key 'url'; did you mean 'uri'?"),
    ],
)
def test_wrong_trackers_are_refused(tiny: Tiny, tmp_path: Path, trackers: list[Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        run(tiny({"trackers": trackers}), tmp_path / "run")
    assert message in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_named_with_its_extra(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"pip install 'fedkd\[wandb\]'"):
        run(tiny({"trackers": ["wandb"]}), tmp_path / "run")


def test_one_s_own_tracker_hears_all_and_a_failing_one_costs_nothing(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from fedkd import Tracker\n"
        "class Mine(Tracker):\n"
        "    def __init__(self, *, fails: int = -1):\n"
        "        self.fails = fails\n"
        "    def begin(self, config, folder, first_round):\n"
        "        self.out = folder / f'heard{self.fails}.txt'\n"
        "        self.out.write_text(f'{config.seed} {first_round}')\n"
        "    def note(self, line):\n"
        "        if line['round'] == self.fails:\n"
        "            raise ConnectionError('nobody there')\n"
        "        self.out.write_text(self.out.read_text() + f' {line[\"round\"]}')\n"
        "    def end(self, summary, figures):\n"
        "        self.out.write_text(self.out.read_text() + ' ' + summary['status'])\n"
    )
    name = f"{plugin}:Mine"
    summary = run(tiny({"trackers": [{"name": name, "fails": 1}, name]}), tmp_path / "run")
    assert summary["status"] == "completed"
    assert (tmp_path / "run" / "heard-1.txt").read_text() == "0 0 0 1 2 completed"
    assert (tmp_path / "run" / "heard1.txt").read_text() == "0 0 0"
    (said,) = [record.getMessage() for record in caplog.records if "tracker" in record.getMessage()]
    assert said == f"tracker {name} failed and is not used any more: ConnectionError: nobody there"
