"""Teachers: where finished clips (``clips``) or velocities (``velocity``) to learn from come from."""
