"""What attentions keep of tokens and of sequences, and how many a server holds."""
