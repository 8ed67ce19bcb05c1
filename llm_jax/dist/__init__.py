"""What is where and who is there: the mesh, whether a model fits it, slices of TPUs, several hosts as one job."""
