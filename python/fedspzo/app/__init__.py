"""The command line, with its configs, data, models, tasks and the run's folder.

This package may import all other packages. None of them imports it.
"""
