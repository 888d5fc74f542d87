//! Serves page faults of restored microVMs from a chunk source through userfaultfd.
