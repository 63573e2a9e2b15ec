"""The embedded demo: a tiny language model, its data, and the scripts that make both.

Imports nothing of fedspzo: the scripts need torch and transformers alone.
"""
