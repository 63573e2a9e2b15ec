"""The command line, with its configs, data, models, tasks and the run's folder.

May import all other packages. None of them imports this one.
"""
