"""Generated reloads over real ranks: something fails somewhere, and somebody tries again."""
