//! Stores stopped virtual machines as content-addressed chunks and a manifest, and reads them back verified.
