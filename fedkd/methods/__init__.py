"""Code that several methods share, and that nothing else uses.

* `public_distillation`: knowledge on the public set, and distillation on it (FedMD, DS-FL, KnFu, ...).
* `distillation_loss`: the option `loss` of methods that distil from logits.
* `relay`: rounds of one request: the last round's targets down, the new knowledge up (DS-FL, COMET).
* `knowledge_fusion`: N x N fusion weights (KnFu, KT-pFL).
* `class_means`: means of each class on a node and over nodes (FD, FedProto).
* `label_logits`: tables of the mean logits of each label (FD, FedDistill).
* `teachers`: many frozen models on one batch (FedFTG, FedGen).
* `image_shares`: a node's share of the images (FedDyn, SCAFFOLD).
* `shared_parts`: models of which nodes share a part and keep the rest (FedPer, LG-FedAvg).
* `node_cache`: large arrays that are sent to each node once (FedLGD, VHL).
* `virtual_images`: nodes that train on virtual images (FedLGD and its baselines).
* `self_supervised`: encoders that learn without labels (SimCLR, MoCo, BYOL, ..., FedX).
"""
