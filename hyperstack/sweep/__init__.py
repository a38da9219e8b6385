"""Many runs of one task: which, trained together where they can be, and what they came to."""
