"""The commands, a module each: its `add` gives the parser a command, its functions run it.

May import all other packages, but nothing heavy at a module's top, so that `fedspzo --help` is
quick. Only the command line imports this one.
"""
