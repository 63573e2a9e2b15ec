"""`lr="auto"`: learning rates, and Newton steps of a cheap last block, found from losses alone.

May import `evaluation`, `estimators` and `blocks`.
"""
