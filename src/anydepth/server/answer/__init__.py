"""What becomes of an answer's text on its way to a client."""
