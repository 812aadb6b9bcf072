"""The commands: each is the function `NAME_command` of the module `NAME`."""
