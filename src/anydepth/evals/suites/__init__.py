"""The suites, one file each, their figures beside them."""
