"""Kinds of runs that rules are made on: look at them as much as you like."""
