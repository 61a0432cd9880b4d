"""Safety Tokens that are trained together with a probe, the model frozen."""
