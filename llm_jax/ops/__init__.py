"""The hardware side of the model: products and their collectives, attention kernels, exchanges, pipelines, remat."""
