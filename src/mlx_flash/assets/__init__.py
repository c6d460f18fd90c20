"""What ships inside the package: the bundled model, what was measured, the page of the server."""
