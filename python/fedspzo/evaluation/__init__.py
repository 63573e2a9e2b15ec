"""Evaluation of losses at perturbed weights, in place or layerwise.

The `evaluator` goes from point to point. At each it moves the blocks: an `in_place` block changes
its weights and changes them back, and a `layerwise` block leaves them as they are and lets
operations compute with perturbed copies. May import `blocks`, `estimators` and the root's modules.
"""
