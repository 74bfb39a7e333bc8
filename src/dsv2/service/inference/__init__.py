"""From the body of a request to an answer, in the shapes of every API."""
