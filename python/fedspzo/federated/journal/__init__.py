"""A federated run's journal: it is written, read and compacted here. Each round is a record.

docs/journal.md lays out its bytes. May import `fedspzo.journal`, the protocol and the server's
parts.
"""
