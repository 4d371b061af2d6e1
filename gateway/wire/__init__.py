"""What goes over the wire, read as little as can be: events of a stream, members of a body. Pure functions of bytes."""
