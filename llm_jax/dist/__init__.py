"""Devices and processes: the mesh, checks that a model fits it, slices of TPUs, several hosts as one job."""
