"""What a worker does with a slide: embed, mix, pool, draw."""
