"""Fit, calibrate and measure probes."""
