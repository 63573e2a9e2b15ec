"""The packaged demo: a tiny language model, its data, and the scripts that make both.

Imports nothing of fedspzo. The scripts need only torch and transformers.
"""
