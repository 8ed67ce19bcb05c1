"""Graders of generated answers: numbers, LaTeX, letters, exact matches and programs; scores of several samples."""
