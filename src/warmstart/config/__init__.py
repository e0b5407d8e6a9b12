"""The one schema, its rules, and the ways in and out of it. Imports no torch."""
