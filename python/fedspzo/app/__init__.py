"""The command line: configs, data, models and tasks, and the folder that a run leaves.

May import everything below it; nothing imports it.
"""
