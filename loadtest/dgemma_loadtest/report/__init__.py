"""What a run was worth, as a page to look at, and as gates that a build can fail at."""
