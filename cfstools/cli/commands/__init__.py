"""One module a verb: options in, a call to ``cfstools.api``, its report as text or JSON out."""
