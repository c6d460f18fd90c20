"""What ships inside the package: the bundled model."""
