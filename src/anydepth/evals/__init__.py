"""Measure what a guard does: one suite a claim of the paper, records that resume, figures with intervals."""
