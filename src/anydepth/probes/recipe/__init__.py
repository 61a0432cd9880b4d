"""Which conversations a probe is fitted on, and how they are read."""
