"""What several methods share, and only they.

* `public_distillation`: knowledge on the public set, and distillation on it (FedMD, DS-FL, KnFu, ...).
* `relay`: rounds of one request: last targets down, next knowledge up (DS-FL, COMET).
* `knowledge_fusion`: N x N fusion weights (KnFu, KT-pFL).
* `class_means`: means by class on a node and over nodes (FD, FedProto).
* `label_logits`: tables of mean logits by label (FD, FedDistill).
* `teachers`: many frozen models on one batch (FedFTG, FedGen).
* `image_shares`: a node's share of the images (FedDyn, SCAFFOLD).
* `node_cache`: large arrays that travel to each node once (FedLGD, VHL).
* `virtual_images`: nodes that train on virtual images (FedLGD and its baselines).
* `self_supervised`: encoders that learn without labels (SimCLR, MoCo, BYOL, ..., FedX).
"""
