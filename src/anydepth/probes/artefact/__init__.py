"""What is published beside a probe: card, fit record, hub."""
