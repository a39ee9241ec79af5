"""The processes behind a mount that is served in user space: a keeper, and the server it starts again."""
