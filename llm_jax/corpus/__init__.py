"""From raw web crawls, books and code to clean, deduplicated documents: needs no JAX and no accelerator."""
