"""What an exchange of tokens costs beside the all-reduce that it replaces, and when it pays."""
