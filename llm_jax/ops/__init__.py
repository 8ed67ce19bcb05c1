"""How machines do it: products and their collectives, kernels of attention, exchanges, pipelines, recomputing."""
