"""anydepth inside other people's programs: one module for each, which imports that program's package."""
