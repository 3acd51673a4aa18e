"""The commands of the program, a function each; `twosides.cli` puts them together."""
