"""Measurements on the model's inside, and tuned models."""
