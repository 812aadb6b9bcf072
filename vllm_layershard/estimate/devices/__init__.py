"""The profiles that come with the package, a vendor a file."""
