"""Losses at perturbed weights: in place or layerwise, point after point.

May import `blocks` and `estimators`.
"""
