"""anydepth inside other people's programs: one module each, which imports that program's package when it is loaded."""
