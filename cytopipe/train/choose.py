"""Selection by validation (METHODS 2.6): student and teacher are both looked at, and the best one so far is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cytopipe.data import ImagePool
from cytopipe.nets import Net, inference_state
from cytopipe.nets.bundle import save_state
from cytopipe.train.checkpoint import Progress
from cytopipe.train.settings import TrainSettings
from cytopipe.train.validate import Validation, validate

BEST_FILE = "best-{network}.safetensors"  # the better network's inference state at the best validation so far


class Chooser:
    """Validates networks on one pool and keeps the weights of the best."""

    def __init__(self, folder: Path, pool: ImagePool, settings: TrainSettings) -> None:
        self._folder, self._pool, self._settings = folder, pool, settings

    def look(self, networks: Mapping[str, Net], progress: Progress) -> dict[str, Validation]:
        """Validate each network. The first one that beats every validation before (ties: the earlier) is written, and
        `progress` then names it.
        """
        results: dict[str, Validation] = {}
        for name, net in networks.items():
            results[name] = validate(net, self._pool, self._settings.val_tiles)
            value = self.value(results[name])
            if progress.best_value is None or value > progress.best_value:
                progress.best_value, progress.best_t, progress.best_network = value, progress.t, name
                save_state(self.file(name), inference_state(net))
        return results

    def value(self, validation: Validation) -> float:
        """The metric that chooses; 0 where the validation images leave it undefined."""
        return validation.metrics.get(self._settings.metric, 0.0)

    def file(self, network: str) -> Path:
        """Where the weights of a network at its best validation lie."""
        return self._folder / BEST_FILE.format(network=network)
