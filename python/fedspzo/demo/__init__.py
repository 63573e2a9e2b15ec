"""The embedded demo: a tiny language model, its data, and the scripts that make both."""
