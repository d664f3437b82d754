"""Central: one model, trained on the images of all nodes together. The upper bound, impossible in a real federation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedkd import (
    ANY_KIND,
    ANY_TASK,
    Client,
    Kind,
    ModelLoss,
    Round,
    Strategy,
    Task,
    chances_of,
    copied,
    label_weights,
    of_labels,
    train_as,
)


@dataclass(kw_only=True)
class Central(Strategy):
    """Pooled training: `[train]` on the union of the nodes' images, a new optimiser in each round; nothing is sent.

    Starts from the same weights as FedAvg. It does not use the public set. A cohort smaller than all nodes has no
    effect: each round uses all images. With `[train] steps`, a round has as many batches as all nodes together.
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND
    tasks: ClassVar[frozenset[Task]] = ANY_TASK
    balances: ClassVar[bool] = True
    client: ClassVar[type[Client]] = Client
    equal_models: ClassVar[bool] = True
    global_model: ClassVar[bool] = True
    pooled: ClassVar[bool] = True

    def run_round(self, federation: Round) -> None:
        """Train on the pooled images."""
        assert self.weights is not None
        environment = federation.environment
        model = environment.model(0)
        model.load_state_dict(self.weights)
        pooled = environment.data.train.take(environment.data.pooled())
        settings = federation.config.train.in_round(federation.number)
        if settings.steps is not None:
            settings = settings.model_copy(update={"steps": settings.steps * environment.data.clients})
        classes, device = len(environment.data.classes), environment.device
        weights = label_weights(settings, pooled.labels, classes, device)
        loss = train_as(
            settings,
            model,
            pooled,
            preprocess=environment.preprocess,
            order=federation.stream("pooled-training"),
            loss=ModelLoss(of_labels(settings, environment.data.spec.task), own=weights),
            chances=chances_of(settings, pooled.labels, classes),
        )
        self.weights = copied(model.state_dict())
        federation.log("train_loss", loss)
