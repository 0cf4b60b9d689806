"""Training runs as users have them, healthy and with a public fault, and what is said to each."""
