"""self1e: ask a vision-language model for a thing, get its mask."""
