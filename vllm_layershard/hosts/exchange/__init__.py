"""The token exchange on a host: how it is asked for, and what it cannot stand beside."""
