"""What the commands print and write: text, JSON, HTML, traces."""
