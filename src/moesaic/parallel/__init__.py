"""Where the model computes: meshes of ranks, and the model laid out over them from outside."""
