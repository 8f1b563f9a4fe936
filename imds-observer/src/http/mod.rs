//! Reads request heads and status lines. Total: any bytes give a head, a need for more, or a reason.
