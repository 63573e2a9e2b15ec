"""The GPU suite: everything that only a GPU can answer, in one call of under eight minutes.

`suite` runs the parts of `parts`, each a process of its own, and `report` writes what their rows
say. A part is a module with a `main()`; it asks `device` for the GPU and leaves rows by `rows`.
"""
