"""minga: asynchronous training of image classifiers on the PCs of a LAN."""

__version__ = "0.1.0"
