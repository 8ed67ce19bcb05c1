"""What a trained model is worth, on text and tasks from outside its own data."""
