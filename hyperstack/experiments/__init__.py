"""Published experiments as data, one file each: what was claimed, how to measure it again, and what to make of both."""
