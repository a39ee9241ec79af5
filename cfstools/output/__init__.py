"""Write output files and directories atomically: they appear complete or not at all."""
