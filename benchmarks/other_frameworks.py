"""FedAvg of benchmarks/engine.py under two other simulators: pfl in two processes, BlazeFL in two threads.

Both do the rounds of `engine.plain_two`: the same federation, model, cohorts, batches and steps, no evaluation. Neither
is a dependency of fedkd, so both are imported when they are measured. To install them:

    pip install "pfl==0.6.0"
    pip install tqdm && pip install --no-deps --ignore-requires-python "blazefl==3.0.0"

BlazeFL 3.0 asks for Python 3.14, for whose free threading it is made. On an older one only the syntax of two generic
functions and annotations ahead of a name stand in the way; `port_blazefl` rewrites them where BlazeFL is installed:

    python benchmarks/other_frameworks.py           # ports the installed BlazeFL to Python 3.11

Its threads then share the interpreter's lock.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import multiprocessing as mp
import os
import re
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from engine import BATCH, CLIENTS, COHORT, RATE, Plain, _cohort
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from fedkd.config import Config

WORKERS = 2


class _WithLoss(nn.Module):
    """A model with the methods that pfl calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch."""
        return F.cross_entropy(self.model(images), labels)

    def metrics(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        """Return no metrics: pfl evaluates all clients of its first round, which does not count."""
        return {}


def pfl_train(config: Config) -> tuple[list[float], nn.Module]:
    """Return the seconds of each round and the global model, in one of pfl's processes."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    plain = Plain(config)
    times: list[float] = []

    class Clock(TrainingProcessCallback):
        """Notes when training begins and when each round ends."""

        def on_train_begin(self, *, model: Any) -> Any:
            times.append(time.perf_counter())
            return Metrics()

        def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
            times.append(time.perf_counter())
            return False, Metrics()

    def shuffled(client: int) -> Any:
        images, labels = plain.parts[client]
        order = torch.randperm(len(labels))
        return PyTorchTensorDataset((images[order], labels[order]), user_id=str(client))

    # pfl deals clients to its processes in turn, as plain_two does, and asks for one at a time
    clients = itertools.chain.from_iterable(map(_cohort, itertools.count()))
    federation = FederatedDataset(shuffled, lambda: next(clients))
    module = _WithLoss(plain.model)
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=config.rounds,
            evaluation_frequency=10**6,
            train_cohort_size=COHORT,
            val_cohort_size=0,
        ),
        SimulatedBackend(federation, federation, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(local_batch_size=BATCH, local_num_epochs=1, local_learning_rate=RATE),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[Clock()],
        send_metrics_to_platform=False,
    )
    return [end - begin for begin, end in itertools.pairwise(times)], plain.model


def _pfl_worker(rank: int, addresses: str, config: Config, pipe: Any) -> None:
    """Join pfl's workers, which pfl does when it is first imported, and train."""
    os.environ.update(PFL_WORKER_RANK=str(rank), PFL_WORKER_ADDRESSES=addresses, PFL_PYTORCH_DEVICE="cpu")
    pipe.send(pfl_train(config)[0])


def pfl_two(config: Config) -> list[float]:
    """Return the seconds of each round of pfl's simulation in two processes, by the clock of the first."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    addresses = ",".join([f"localhost:{port}"] * WORKERS)  # pfl reads the first, and counts them
    context = mp.get_context("spawn")
    pipes, processes = [], []
    for rank in range(WORKERS):
        mine, theirs = context.Pipe(duplex=False)
        arguments = (rank, addresses, config, theirs)
        # pfl joins its workers only in a process of this name; a daemon ends with us where the other has failed
        process = context.Process(target=_pfl_worker, args=arguments, name="MainProcess", daemon=True)
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    seconds: list[list[float]] = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    return seconds[0]


class _Client(Dataset):
    """A client's images and labels, from which a DataLoader gets a batch at once."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a batch; DataLoader calls this, where there is one, instead of fetching one image at a time."""
        batch = torch.tensor(indices)
        return self.images[batch], self.labels[batch]


def _as_it_is(batch: Any) -> Any:
    """Return a batch that needs no collating."""
    return batch


class _Federation:
    """The clients, as BlazeFL's protocol PartitionedDataset wants them."""

    def __init__(self, parts: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.clients = [_Client(*part) for part in parts]

    def get_dataset(self, type_: Any, cid: int | None) -> Dataset:
        """Return a client's data."""
        assert cid is not None
        return self.clients[cid]

    def set_dataset(self, type_: Any, cid: int | None, dataset: Dataset) -> None:
        """Do nothing: the data stay in memory."""

    def get_dataloader(
        self, type_: Any, cid: int | None, batch_size: int | None, generator: torch.Generator | None
    ) -> DataLoader:
        """Return shuffled batches of a client's data."""
        data = self.get_dataset(type_, cid)
        return DataLoader(data, batch_size, shuffle=True, generator=generator, collate_fn=_as_it_is)


class _Models:
    """As many models as a cohort needs, for BlazeFL's protocol ModelSelector: a new one a client is slower."""

    def __init__(self, model: nn.Module) -> None:
        self.models = itertools.cycle([copy.deepcopy(model) for _ in range(COHORT)])

    def select_model(self, model_name: Any) -> nn.Module:
        """Return a model that no other client of this round has; BlazeFL sets all of its weights."""
        return next(self.models)


def blazefl_train(config: Config) -> tuple[list[float], nn.Module]:
    """Return the seconds of each round of BlazeFL in two threads, and the global model."""
    from blazefl.contrib import FedAvgBaseServerHandler, FedAvgThreadPoolClientTrainer

    class Handler(FedAvgBaseServerHandler):
        """BlazeFL's server, with our cohorts."""

        def sample_clients(self) -> list[int]:
            return _cohort(self.round)

    class Trainer(FedAvgThreadPoolClientTrainer):
        """BlazeFL's pool of threads, without its progress bar, and with one torch thread in each of them."""

        def progress_fn(self, it: Any) -> Iterable[Any]:
            return it

        def worker(self, *args: Any, **kwargs: Any) -> Any:
            torch.set_num_threads(1)
            return super().worker(*args, **kwargs)

    plain = Plain(config)
    shared = {
        "model_name": config.model.name,
        "dataset": _Federation(plain.parts),
        "num_clients": CLIENTS,
        "device": "cpu",
        "batch_size": BATCH,
        "seed": 0,
    }
    handler = Handler(_Models(plain.model), global_round=config.rounds, sample_ratio=COHORT / CLIENTS, **shared)
    trainer = Trainer(_Models(plain.model), epochs=1, lr=RATE, num_parallels=WORKERS, **shared)
    seconds = []
    while not handler.is_stopped():
        begin = time.perf_counter()
        cohort = handler.sample_clients()
        trainer.local_process(handler.downlink_package(), cohort)
        for package in trainer.uplink_package():
            handler.load(package)
        seconds.append(time.perf_counter() - begin)
    return seconds, handler.model


def blazefl_two(config: Config) -> list[float]:
    """Return the seconds of each round of BlazeFL in two threads."""
    return blazefl_train(config)[0]


def port_blazefl() -> None:
    """Rewrite what Python 3.11 cannot read of the installed BlazeFL: `def f[T](`, and annotations ahead of a name."""
    package = importlib.util.find_spec("blazefl")
    if package is None or package.origin is None:
        raise SystemExit("blazefl is not installed")
    later = "from __future__ import annotations\n"
    for path in Path(package.origin).parent.rglob("*.py"):
        text = path.read_text()
        if not text.startswith(later):
            path.write_text(later + re.sub(r"^(def \w+)\[T\]\(", r"\1(", text, flags=re.MULTILINE))


if __name__ == "__main__":
    port_blazefl()
