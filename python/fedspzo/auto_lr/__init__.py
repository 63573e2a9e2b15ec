"""`lr="auto"`: learning rates, and Newton steps of a cheap last block, found from losses alone.

`block_statistics` collects the numbers that a block's turns show, and `rates`, a pure function,
turns them into learning rates. Two policies apply the rates: `central` for an optimizer by itself,
and `fedspzo.federated.found_rates` for a federation. Both watch the loss with a `loss_monitor`.

May import `evaluation`, `estimators`, `blocks` and the root's modules.
"""
