"""Writing objects: contents become temporaries, and batches of them get their names once they are durable."""
