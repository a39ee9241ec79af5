"""The command ``mkcfs``: the only room that reads the environment, prints, prompts and exits."""
