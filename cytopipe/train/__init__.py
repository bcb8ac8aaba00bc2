"""Training: one loop for all methods (engine), assembled from stores and settings (build), ended as a model bundle
(finish).

`TrainSettings` is light; the rest imports torch, so name the module you need.
"""

from cytopipe.train.settings import TrainSettings

__all__ = ["TrainSettings"]
