"""Everything that depends on the inside of Ray."""
