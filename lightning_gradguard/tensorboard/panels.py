"""For those who must do without the tab: what TensorBoard's standard dashboards can show of gradients."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from lightning_gradguard.record import StepRecord
from lightning_gradguard.sinks import Sink
from lightning_gradguard.tensorboard.flow import HEAD_ROWS, flow_matrix, fold
from lightning_gradguard.tensorboard.writer import BoardWriter, WriterLike

_MAX_COLUMNS = 512
# Ends and middle of the picture: far below, at, and far above the median norm of the run; and what is no number.
_LOW, _MIDDLE, _HIGH = (np.array(c, dtype=np.float64) for c in ((15, 76, 148), (245, 243, 239), (143, 63, 4)))
_NONFINITE, _ZERO, _NO_GRADIENT = (0, 0, 0), (141, 147, 153), (215, 219, 224)
_SMALLEST_SIDE = 240


class TensorBoardPanels(Sink):
    """Opt-in extras for the standard dashboards; the *Gradient flow* tab needs none of them.

    Custom Scalars gets a layout with the total norm beside its threshold and all layers in one chart; Histograms the
    spread of ``log10`` layer norms at each record; Images, at the end, the picture layers × steps. They are not
    written by default because a layout replaces one of your own, an image is kept only ten times, and a histogram does
    not say which layer it was.

    Args:
        writer: as for :class:`~lightning_gradguard.tensorboard.sink.TensorBoardSink`; hand both the same one.

    Example:
        >>> panels = TensorBoardPanels("runs/first")
        >>> panels = TensorBoardPanels(lambda: trainer.logger.experiment)  # doctest: +SKIP
    """

    def __init__(self, writer: WriterLike) -> None:
        self._board = BoardWriter(writer)
        self._has_layout = False
        self._columns: dict[tuple[int, tuple[str, ...]], list[NDArray[np.float32]]] = {}
        self._last: StepRecord | None = None

    def write(self, record: StepRecord) -> None:
        """Adds one record to the histogram and to the picture; the first one brings the layout."""
        self._last = record
        if record.layers:
            columns = self._columns.setdefault((record.optimizer, record.layers), [])
            columns.append(flow_matrix(record))
            if len(columns) >= 2 * _MAX_COLUMNS:  # neighbours become one, the worst of both: memory stays bounded
                columns[:] = [fold(left, right) for left, right in zip(columns[::2], columns[1::2], strict=True)]
        self._board.attempt(record, partial(self._write, record))

    def close(self) -> None:
        """Writes the picture of each optimizer."""
        if self._last is not None:
            self._board.attempt(self._last, partial(self._write_images, self._last.step))
        self._board.close(self._last)

    def _write(self, record: StepRecord) -> None:
        writer = self._board.current()
        suffix = f"/opt{record.optimizer}" if record.num_optimizers > 1 else ""
        if not self._has_layout:
            total = ["grad_norm_total/pre_clip.*", "grad_norm_total/post_clip.*", "grad_norm_total/threshold.*"]
            charts = {"total norm and threshold": ["Multiline", total], "layers": ["Multiline", ["grad_norm/.*"]]}
            writer.add_custom_scalars({"Gradients": charts})
            self._has_layout = True
        logs = [np.log10(norm) for norm in record.max_layer_norms if norm]
        if logs:
            writer.add_histogram(f"gradguard/log10_layer_norm{suffix}", np.array(logs), record.step)

    def _write_images(self, step: int) -> None:
        for (optimizer, layers), columns in self._columns.items():
            norms = np.stack([column[HEAD_ROWS:, 0] for column in columns], axis=1)
            tag = f"gradguard/layers_by_steps/opt{optimizer}/{len(layers)}_layers"
            self._board.current().add_image(tag, heat_map(norms), step, dataformats="HWC")


def heat_map(norms: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Norms ``[layers, columns]`` as a picture ``[height, width, 3]``, input on top, enlarged to be seen.

    log10 against the median of the run: blue below, orange above, at most three decades each. NaN and infinity black,
    zero grey, no gradient light grey.
    """
    usable = np.isfinite(norms) & (norms > 0)
    logs = np.log10(np.where(usable, norms, 1.0))
    place = np.clip((logs - (np.median(logs[usable]) if usable.any() else 0.0)) / 3.0, -1.0, 1.0)[..., None]
    colours = np.where(place < 0, _MIDDLE + place * (_MIDDLE - _LOW), _MIDDLE + place * (_HIGH - _MIDDLE))
    colours[norms == 0] = _ZERO
    colours[norms < 0] = _NO_GRADIENT
    colours[~np.isfinite(norms)] = _NONFINITE
    height, width = (max(1, _SMALLEST_SIDE // size) for size in norms.shape)
    return colours.astype(np.uint8).repeat(height, axis=0).repeat(width, axis=1)
