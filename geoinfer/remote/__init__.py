"""Bytes from elsewhere: addresses, what may be reached, ranges of files over HTTP and from object stores. No imagery."""
