"""Who gets a row of the next pass: requests in, events out, one pass at a time."""
