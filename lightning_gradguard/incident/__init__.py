"""What to do when a step goes bad: find where it began, save what is needed to run it again, and run it again."""
