"""The commands. Each defines its flags and makes one call into the package."""
