"""The command line of hyperstack: `main` finds the verbs, one file each, in `verbs`."""
