"""State machines without input or output: the simulator and the runtime drive the same ones."""
