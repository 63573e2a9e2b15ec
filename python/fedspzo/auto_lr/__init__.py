"""`lr="auto"`: learning rates, and Newton steps of a cheap last block, found from losses alone.

`block_statistics` collects what a block's turns show, and `rates` turns it into learning rates: a
pure function. Two policies decide what is done with them: `central`, for an optimizer by itself,
and `fedspzo.federated.found_rates`, for a federation. They watch the loss with a `loss_monitor`.

May import `evaluation`, `estimators` and `blocks`.
"""
