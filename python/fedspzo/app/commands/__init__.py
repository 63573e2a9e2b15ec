"""The commands, a module each: its `add` gives the parser a command, its functions run it.

A module imports nothing heavy at its top, so that `fedspzo --help` is quick.
"""
