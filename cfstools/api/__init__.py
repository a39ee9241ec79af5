"""One module a verb: plain, documented arguments in, a report object out."""
