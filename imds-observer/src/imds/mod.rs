//! What a request means to the metadata service: version, dialect, path. Secrets stop here: tokens become salted hashes.
