"""Training and measuring one model.

* `batches`: makes batches of images: order, augmentation, normalisation.
* `views`: random views of images, for training without labels.
* `training`: the training step and loop.
* `optimizers`: optimisers of local training.
* `evaluation`: prediction, features, accuracy and loss.
* `losses`: losses that more than one method uses.
* `probes`: measure the quality of frozen features.
"""
