"""One file a verb; each defines a click command called `command`.

Nothing here imports torch at the top of a file, so that `hyperstack --help` answers at once.
"""
