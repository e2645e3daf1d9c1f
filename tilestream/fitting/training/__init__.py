"""How heads learn: linear models by their optimum, others by steps; what they read is drawn from stores."""
