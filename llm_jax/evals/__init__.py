"""Evaluation of a trained model on text and tasks from outside its own data."""
