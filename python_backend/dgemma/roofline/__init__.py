"""What a pass must move and multiply, and how long a GPU takes for it at least."""
