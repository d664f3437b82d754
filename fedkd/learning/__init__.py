"""Training and measuring one model.

* `batches`: makes batches of images: order, augmentation, normalisation.
* `views`: random views of images, for training without labels.
* `training`: the training step and loop.
* `loss_scale`: the scale of the loss with float16.
* `optimizers`: optimisers of local training.
* `stacked_training`: many clients in one step; `stacked_batches`: their batches; `stacked_step`: the step;
  `stacked_graphs`: a step of fixed shapes, which a GPU records and replays;
  `stacked_models`: the outputs of many models in one call; `stacked_optimizers`: a row for each client;
  `stacked_prediction`: logits of many clients; `stacked_memory`: how many fit; `plans`: the batches of a training,
  drawn before it.
* `evaluation`: prediction, features, accuracy and loss.
* `losses`: losses that more than one method uses.
* `probes`: measure the quality of frozen features.
"""
