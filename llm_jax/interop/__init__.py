"""Weights of other projects in and out: Hugging Face directories, llama2.c files."""
