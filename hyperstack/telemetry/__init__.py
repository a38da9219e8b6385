"""What a tower did: rows gathered on its device, the sinks that they go to, and what is read from them."""
