"""The networks: found, described, loaded strictly, put on a device. The only floor that imports Diffusers."""
