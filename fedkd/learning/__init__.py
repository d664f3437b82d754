"""Training and measuring one model.

* `batches`: makes batches of images: order, augmentation, normalisation.
* `views`: random views of samples, for training without labels; `kind_views`: of rows, series and texts.
* `training`: the training step and loop.
* `loss_scale`: the scale of the loss with float16.
* `optimizers`: optimisers of local training.
* `stacked_training`: many clients in one step; `stacked_batches`: their batches; `stacked_step`: the step;
  `stacked_graphs`: a step of fixed shapes, which a GPU records and replays; `stacked_models`: the outputs of many
  models in one call; `stacked_optimizers`: a row for each client; `stacked_parameters`: the rows of their parameters;
  `stacked_prediction`: logits of many clients; `stacked_memory`: how many fit; `plans`: the batches of a training,
  drawn before it.
* `contrast`: the training loop without labels; `stacked_contrast`: that of many clients in one step;
  `stacked_comparison`: local training of many with a loss that compares images; `stacked_networks`: many networks whose
  whole loss runs under `vmap`.
* `work`: what a client does alone, or in one step with others: training, prediction, ...
* `evaluation`: prediction, features, accuracy and loss.
* `losses`: losses that more than one method uses.
* `kd_losses`: losses of knowledge distillation, which the option `loss` of methods names.
* `probes`: measure the quality of frozen features.
"""
