"""Windows in batches of one size, and what to do when the device's memory does not hold them. Nothing of torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cytopipe.core.errors import RunError
from cytopipe.core.progress import Say, unsaid
from cytopipe.infer.located import U8, Located, Predictor

PADDING = 255  # grey level of the windows that fill up a batch: empty glass, in which little is found


class Batches:
    """A predictor that is always given `batch_windows` windows: partial batches are padded, since the last bits of a
    network's answer depend on the batch's size.

    When the predictor raises one of `out_of_memory`, the batch is halved, for good, and the work goes on.
    """

    def __init__(
        self,
        predictor: Predictor,
        batch_windows: int,
        out_of_memory: tuple[type[Exception], ...] = (),
        say: Say = unsaid,
    ) -> None:
        if batch_windows < 1:
            raise ValueError(f"Batches: {batch_windows} windows")
        self._predictor, self._out_of_memory, self._say = predictor, out_of_memory, say
        self.batch_windows = batch_windows

    def __call__(self, images: Sequence[U8]) -> list[Located]:
        """What each image holds. Raises RunError when the memory does not hold a single window."""
        found: list[Located] = []
        while len(found) < len(images):
            part = list(images[len(found) : len(found) + self.batch_windows])
            blank = [np.full_like(part[0], PADDING)] * (self.batch_windows - len(part))
            try:
                found += self._predictor(part + blank)[: len(part)]
            except self._out_of_memory as error:
                if self.batch_windows == 1:
                    what = "the device's memory does not hold one window"
                    raise RunError(what, fix="close what else uses it, or --device cpu") from error
                self.batch_windows //= 2
                self._say(f"warning: the device's memory is full; batches of {self.batch_windows} windows from here on")
        return found
