"""The messages between a server and its clients. docs/federation.md lays out their bytes.

May import `journal`, and from `fedspzo.federated` the settings alone.
"""
