"""How the embedded model was made: the toy world, the networks at their small sizes, one command per training stage."""
