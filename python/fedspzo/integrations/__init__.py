"""Training loops of other libraries with steps of `SPZO` in them.

`transformers` has a Trainer, and a mixin for trainers that derive from it, such as TRL's. May
import `optim`, `evaluation`, `blocks` and the root's modules, and the library that a module is
named after.
"""
