"""The commands of `regrow`."""
