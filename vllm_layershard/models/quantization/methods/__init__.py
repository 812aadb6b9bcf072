"""The methods: how what each tool writes is read, a method a file."""
