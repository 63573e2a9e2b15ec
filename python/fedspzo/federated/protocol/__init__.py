"""The messages between a server and its clients, as bytes; docs/federation.md has every one.

May import `journal`, and of `fedspzo.federated` the settings alone.
"""
