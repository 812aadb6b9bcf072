"""The forwards that are looked at, and from how many tokens on a prefill hides what moves."""
