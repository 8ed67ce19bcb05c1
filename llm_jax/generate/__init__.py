"""Sampling from a trained model: samplers, the decoding engine, text in and out."""
