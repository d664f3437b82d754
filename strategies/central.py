"""Central: one model trained on all nodes' images in one place. The upper bound; no federated method can do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedkd import Client, Round, Strategy
from fedkd.training import make_optimizer, train


@dataclass(kw_only=True)
class Central(Strategy):
    """Pooled training: `[train]` on the union of the nodes' images, a fresh optimiser a round; nothing is sent.

    Starts from the same weights as FedAvg. The public set is not part of it. A cohort below all nodes has no effect:
    each round sees all images.
    """

    client: ClassVar[type[Client]] = Client
    equal_models: ClassVar[bool] = True
    global_model: ClassVar[bool] = True

    def run_round(self, federation: Round) -> None:
        """Train on the pooled images."""
        assert self.weights is not None
        environment, settings = federation.environment, federation.config.train
        model = environment.model(0)
        model.load_state_dict(self.weights)
        pooled = environment.data.train.take(environment.data.train_parts.values)
        loss = train(
            model,
            pooled,
            torch.from_numpy(pooled.labels),
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            optimizer=make_optimizer(model, settings.optimizer),
            preprocess=environment.preprocess,
            order=federation.stream("pooled-training"),
        )
        self.weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        federation.log("train_loss", loss)
