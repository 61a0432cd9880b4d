"""Hidden states of answers, collected into a store."""
