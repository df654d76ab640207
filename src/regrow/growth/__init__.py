"""Which free positions would grow: the search that never holds a dense gradient."""
