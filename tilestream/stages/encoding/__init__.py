"""How a batch of tiles goes through an encoder: on the host, or on a device, eager or compiled."""
