//! Requests of ioctl(2) on `/dev/kvm` and its descriptors that QEMU makes of a machine that is
//! built.
//!
//! They are those in the code of QEMU 10.0.2's programs, and `KVM_GET_FPU` and `KVM_SET_FPU` of
//! older ones, without what makes machines and devices (`KVM_CREATE_*`), what sets them up once,
//! and what serves parts that no VMM here has: Xen, Hyper-V, encrypted and private memory, nested
//! virtualization, a debugger.

/// `<linux/kvm.h>`, `KVMIO`.
const KVM: u32 = 0xae;
/// Directions of `<asm-generic/ioctl.h>`.
const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;

/// `_IOC` of `<asm-generic/ioctl.h>`.
const fn request(direction: u32, number: u32, size: u32) -> u32 {
    direction << 30 | size << 16 | KVM << 8 | number
}

/// The most frequent first: they are compared in this order.
pub(super) const REQUESTS: &[u32] = &[
    request(NONE, 0x80, 0),             // KVM_RUN
    request(WRITE, 0x61, 8),            // KVM_IRQ_LINE
    request(READ | WRITE, 0x67, 8),     // KVM_IRQ_LINE_STATUS
    request(WRITE, 0xa5, 32),           // KVM_SIGNAL_MSI
    request(WRITE, 0x86, 4),            // KVM_INTERRUPT
    request(NONE, 0x03, 0),             // KVM_CHECK_EXTENSION
    request(READ | WRITE, 0x88, 8),     // KVM_GET_MSRS
    request(WRITE, 0x89, 8),            // KVM_SET_MSRS
    request(READ, 0x81, 0x90),          // KVM_GET_REGS
    request(WRITE, 0x82, 0x90),         // KVM_SET_REGS
    request(READ, 0x83, 0x138),         // KVM_GET_SREGS
    request(WRITE, 0x84, 0x138),        // KVM_SET_SREGS
    request(READ, 0xcc, 0x140),         // KVM_GET_SREGS2
    request(WRITE, 0xcd, 0x140),        // KVM_SET_SREGS2
    request(READ, 0x8c, 0x1a0),         // KVM_GET_FPU
    request(WRITE, 0x8d, 0x1a0),        // KVM_SET_FPU
    request(READ, 0xa4, 0x1000),        // KVM_GET_XSAVE
    request(WRITE, 0xa5, 0x1000),       // KVM_SET_XSAVE
    request(READ, 0xcf, 0x1000),        // KVM_GET_XSAVE2
    request(READ, 0xa6, 0x188),         // KVM_GET_XCRS
    request(WRITE, 0xa7, 0x188),        // KVM_SET_XCRS
    request(READ, 0x8e, 0x400),         // KVM_GET_LAPIC
    request(WRITE, 0x8f, 0x400),        // KVM_SET_LAPIC
    request(READ, 0x9f, 0x40),          // KVM_GET_VCPU_EVENTS
    request(WRITE, 0xa0, 0x40),         // KVM_SET_VCPU_EVENTS
    request(READ, 0xa1, 0x80),          // KVM_GET_DEBUGREGS
    request(WRITE, 0xa2, 0x80),         // KVM_SET_DEBUGREGS
    request(READ, 0x98, 4),             // KVM_GET_MP_STATE
    request(WRITE, 0x99, 4),            // KVM_SET_MP_STATE
    request(NONE, 0xa2, 0),             // KVM_SET_TSC_KHZ
    request(NONE, 0xa3, 0),             // KVM_GET_TSC_KHZ
    request(NONE, 0xad, 0),             // KVM_KVMCLOCK_CTRL
    request(READ, 0x7c, 0x30),          // KVM_GET_CLOCK
    request(WRITE, 0x7b, 0x30),         // KVM_SET_CLOCK
    request(WRITE, 0x93, 8),            // KVM_SET_VAPIC_ADDR
    request(READ | WRITE, 0x92, 0x28),  // KVM_TPR_ACCESS_REPORTING
    request(NONE, 0x9a, 0),             // KVM_NMI
    request(NONE, 0xb7, 0),             // KVM_SMI
    request(READ | WRITE, 0x62, 0x208), // KVM_GET_IRQCHIP
    request(READ, 0x63, 0x208),         // KVM_SET_IRQCHIP, which is defined as a read
    request(READ, 0x9f, 0x70),          // KVM_GET_PIT2
    request(WRITE, 0xa0, 0x70),         // KVM_SET_PIT2
    request(NONE, 0x71, 0),             // KVM_REINJECT_CONTROL
    request(WRITE, 0x6a, 8),            // KVM_SET_GSI_ROUTING
    request(WRITE, 0x76, 0x20),         // KVM_IRQFD
    request(WRITE, 0x79, 0x40),         // KVM_IOEVENTFD
    request(WRITE, 0x46, 0x20),         // KVM_SET_USER_MEMORY_REGION
    request(WRITE, 0x49, 0xa0),         // KVM_SET_USER_MEMORY_REGION2
    request(WRITE, 0x67, 0x10),         // KVM_REGISTER_COALESCED_MMIO
    request(WRITE, 0x68, 0x10),         // KVM_UNREGISTER_COALESCED_MMIO
    request(WRITE, 0x42, 0x10),         // KVM_GET_DIRTY_LOG
    request(READ | WRITE, 0xc0, 0x18),  // KVM_CLEAR_DIRTY_LOG
    request(WRITE, 0x8b, 4),            // KVM_SET_SIGNAL_MASK
    request(WRITE, 0x90, 8),            // KVM_SET_CPUID2
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_numbers_of_the_kernels_header() {
        // As a C compiler computes them from `<linux/kvm.h>`.
        for known in [
            0xae80_u32,
            0x4020_ae46,
            0xc008_ae67,
            0x8208_ae63,
            0xc208_ae62,
            0x9000_aecf,
            0x4090_ae82,
        ] {
            assert!(REQUESTS.contains(&known), "{known:#x}");
        }
        assert!(REQUESTS.iter().all(|request| request >> 8 & 0xff == KVM));
        // KVM_CREATE_VM, KVM_CREATE_VCPU, KVM_CREATE_DEVICE.
        for maker in [0xae01_u32, 0xae41, 0xc00c_aee0] {
            assert!(!REQUESTS.contains(&maker));
        }
    }
}
