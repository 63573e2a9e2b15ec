"""Other libraries: their training loops with steps of `SPZO`, and their ways between machines.

`transformers` has a Trainer, and a mixin for trainers that derive from it, such as TRL's. `flower`
carries federations over Flower. May import `optim`, `evaluation`, `blocks`, the root's modules, and
the library that a module is named after; `flower` may import `federated`, too.
"""
