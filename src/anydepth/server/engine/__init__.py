"""Engines that the server runs, and their turns."""
