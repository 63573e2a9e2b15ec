"""A federated run's journal: its rounds as records, written, read and compacted.

May import `fedspzo.journal`, the protocol and the server's parts; docs/journal.md has every byte.
"""
