"""Metrics of image pairs: pure functions of images, each tested on synthetic images with a known result."""
