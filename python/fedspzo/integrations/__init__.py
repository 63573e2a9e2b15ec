"""Other libraries: their training loops with steps of `SPZO`, and their ways between machines.

`transformers` has a Trainer, and a mixin for trainers that derive from it, such as TRL's. It may
import `optim`, `evaluation`, `blocks`, the root's modules, and the library that it is named after.
`flower` carries federations over Flower. It may import `federated` and what is below it, too.
"""
