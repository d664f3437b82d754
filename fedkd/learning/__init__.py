"""Training and measuring one model.

* `batches`: from images to batches: order, augmentation, normalisation.
* `views`: random views, for learning without labels.
* `training`: the training step and loop.
* `optimizers`: optimisers of local training.
* `evaluation`: prediction, features, accuracy and loss.
* `losses`: losses that more than one method uses.
* `probes`: how good frozen features are.
"""
