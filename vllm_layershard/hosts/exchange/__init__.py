"""The token exchange on a host: how it is asked for, what it excludes, what is built for it."""
