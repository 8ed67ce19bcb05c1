"""An OpenAI-compatible server of one model: protocol, limits, HTTP. No model code."""
