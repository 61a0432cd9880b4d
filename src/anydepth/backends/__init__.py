"""Engines that run the model; `base` says what each must offer."""
