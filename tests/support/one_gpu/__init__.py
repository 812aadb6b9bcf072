"""What the tests of one GPU share."""
