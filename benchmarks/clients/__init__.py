"""Models of published packages, trained as their users train them: plain, watched, and with everything on."""
