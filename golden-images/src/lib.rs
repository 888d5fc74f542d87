//! Turns a recipe into the boot artifacts of a golden image: root file system, kernel, initramfs and guest agent.
