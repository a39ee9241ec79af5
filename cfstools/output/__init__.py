"""Files, directories and temporaries that appear whole or not at all."""
