"""Makes a strategy, and the environment that it runs in, from a config."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import Config, TrainConfig
from ..data.federated_data import FederatedData
from ..errors import InputError
from ..learning.optimizers import make_optimizer
from ..models.build import takes_one_sample
from .contract import check_requests
from .environment import Environment
from .strategy import Strategy
from .wrapper import make_strategy


@dataclass
class Setup:
    """A strategy, and the environment that it runs in."""

    strategy: Strategy
    environment: Environment

    def check(self) -> None:
        """Raise InputError if the models, the cohort or the data do not fit the strategy, before anything runs."""
        strategy, config, data = self.strategy, self.environment.config, self.environment.data
        self._check_kind()
        self._check_task()
        cohort = config.cohort or data.clients
        if cohort > data.clients:
            raise InputError(f"cohort = {cohort}: the federation has only {data.clients} nodes.")
        if config.min_replies > cohort:
            raise InputError(f"min_replies = {config.min_replies}: a round asks only {cohort} nodes.")
        architectures = config.model.architectures
        if strategy.equal_models and len({repr(a) for a in architectures}) > 1:
            found = ", ".join(a.name for a in architectures)
            raise InputError(
                f"model.names = [{found}]: {config.strategy.name} needs equal models; set model.name to one of them."
            )
        for key in ("batch_norm", "lr_decay_by", "continue_epoch"):
            value = getattr(config.train, key)
            own = any(layer.own_loop for layer in strategy.layers())
            if own and value != TrainConfig.model_fields[key].default:
                name = config.strategy.name
                raise InputError(f"train.{key} = {value!r}: {name} has a training loop of its own; remove it.")
        if config.train.batch_norm == "local" and not all(layer.own_statistics for layer in strategy.layers()):
            raise InputError(
                f"train.batch_norm = 'local': in {config.strategy.name} nodes keep whole models, or the server uses "
                "its model, which would lack statistics; remove it."
            )
        fewest = data.fewest_images()
        if config.train.drop_last and config.data.sites is None and fewest < config.train.batch_size:
            raise InputError(
                f"train.drop_last: a node has {fewest} training {data.spec.noun(2)}, fewer than one batch of "
                f"{config.train.batch_size}; set data.partition.minimum to that, or a smaller batch_size."
            )
        for number, architecture in enumerate(architectures):
            model = self.environment.model(number)
            self.environment.refuse_short(number)
            make_optimizer(model, config.train.optimizer)
            if (config.train.batch_size == 1 or fewest == 1) and not takes_one_sample(model, data.form):
                what = (
                    "train.batch_size = 1" if config.train.batch_size == 1 else "data.partition: a node has one image"
                )
                fix = "train.batch_size" if config.train.batch_size == 1 else "data.partition.minimum"
                raise InputError(
                    f"{what}: {architecture.name} has batch norm of vectors, which needs two images in a batch; set "
                    f"{fix} = 2 or more, or use another norm."
                )
        if config.data.sites is not None and strategy.pooled:
            raise InputError(f"data.sites: {config.strategy.name} needs the sites' images, which the server lacks.")
        if strategy.pooled:
            data.pooled()  # raises InputError if the server cannot have the nodes' images
        strategy.check(self.environment)
        check_requests(strategy)

    def _check_kind(self) -> None:
        """Raise InputError if the strategy, or an option, does not serve samples of the data's kind."""
        config, spec = self.environment.config, self.environment.data.spec
        served = frozenset.intersection(*(layer.kinds for layer in self.strategy.layers()))
        noun = spec.noun(2)
        if spec.kind not in served:
            reasons = [layer.why_not[spec.kind] for layer in self.strategy.layers() if spec.kind in layer.why_not]
            why = f" ({reasons[0]})" if reasons else ""
            raise InputError(
                f"strategy.name = {config.strategy.name!r} serves samples of kind {', '.join(sorted(served))}; those "
                f"of data are {noun}{why}. `fedkd list strategies --data {spec.kind}` shows the others."
            )
        if spec.kind != "image" and config.data.augment != "none":
            raise InputError(f"data.augment = {config.data.augment!r} is for images; the samples are {noun}.")

    def _check_task(self) -> None:
        """Raise InputError if the strategy does not serve the data's task, or options of `[train]` on classes."""
        config, task = self.environment.config, self.environment.data.spec.task
        layers = self.strategy.layers()
        served = frozenset.intersection(*(layer.tasks for layer in layers))
        if task not in served:
            raise InputError(
                f"strategy.name = {config.strategy.name!r} serves {', '.join(sorted(served))}; data.task is {task!r}. "
                f"`fedkd list strategies --task {task}` shows the others."
            )
        for key in ("class_weights", "sampling", "loss"):
            value = getattr(config.train, key)
            if value == TrainConfig.model_fields[key].default:
                continue
            if task != "classification":
                raise InputError(f"train.{key} = {value!r} is for classes; data.task is {task!r}.")
            if not all(layer.balances for layer in layers):
                raise InputError(f"train.{key} = {value!r}: {config.strategy.name} has a loss of its own; remove it.")


def make_setup(config: Config, data: FederatedData | None = None, device: str = "cpu") -> Setup:
    """Return the strategy that a config names, and its environment. Its config contains all options of the strategy.

    `data`: the data, if it is loaded already. Raises InputError for any error in the config.
    """
    strategy, table = make_strategy(config.strategy)
    config = config.model_copy(update={"strategy": table})
    return Setup(strategy, Environment(config, data, device))
