"""From text to the token rows a model trains on."""
