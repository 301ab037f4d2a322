"""Statistics for inference, from the data; exact statistics of batches that come in pieces.

replay          a group whose members take turns in one thread
update          `update_statistics`: running statistics made anew from a data set
union           `micro_batches`: gradient accumulation with the statistics of the whole batch
folding         `fold`: a trained layer inside the linear layer before or after it
conventions     a trained layer in the conventions of other libraries
domains         running statistics of several domains
adaptation      statistics of a test batch, blended with the source's
progress        the bar
"""

from typing import TYPE_CHECKING

from bnext import on_demand

if TYPE_CHECKING:
    from bnext.inference.union import micro_batches
    from bnext.inference.update import Update, update_statistics
else:
    __getattr__, __dir__ = on_demand.attributes(
        __name__,
        {
            "bnext.inference": "conventions union update",
            "bnext.inference.union": "micro_batches",
            "bnext.inference.update": "Update update_statistics",
        },
    )

__all__ = ["Update", "micro_batches", "update_statistics"]
