//! Restores sessions from golden images, runs work in them and discards them.
