"""From a Plan to a file, one module per stage; `generate` reads top to bottom like the paper."""
