//! Preload library that lets a stock QEMU hand its guest memory to an external userfaultfd pager.
