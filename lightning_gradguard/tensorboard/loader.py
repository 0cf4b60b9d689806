"""What TensorBoard loads when it starts: must be quick, and must never fail."""

from __future__ import annotations

import argparse
import logging

from tensorboard.plugins import base_plugin

# Columns of the picture that TensorBoard keeps for each run; by itself it would keep 10 or 100, depending on loader.
_SAMPLES = 1000


class GradientFlowLoader(base_plugin.TBLoader):
    """Entry point of the *Gradient flow* tab (``tensorboard_plugins``).

    TensorBoard guards neither the import of an entry point nor its call: an error here would keep TensorBoard from
    starting at all. So this module imports nothing of ours, and :meth:`load` gives up quietly with a line in the log.
    """

    def fix_flags(self, flags: argparse.Namespace) -> None:
        """Asks for 1,000 columns a run unless the user said otherwise (``--samples_per_plugin gradguard=N``)."""
        samples = getattr(flags, "samples_per_plugin", None)
        if isinstance(samples, dict):
            samples.setdefault("gradguard", _SAMPLES)

    def load(self, context: base_plugin.TBContext) -> base_plugin.TBPlugin | None:
        """Returns the plugin, or ``None`` (no tab) if it cannot be loaded."""
        try:
            from lightning_gradguard.tensorboard.plugin import GradientFlowPlugin

            return GradientFlowPlugin(context)
        except Exception as error:
            logging.getLogger("tensorboard").warning("no Gradient flow tab: %s: %s", type(error).__name__, error)
            return None
