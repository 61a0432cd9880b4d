"""Keep a record of every answer that accounts for every token, and verify what was kept."""
