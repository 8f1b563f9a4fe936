//! Puts the packets of a connection back into byte streams, whatever way they were cut, repeated or lost.
