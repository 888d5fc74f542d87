//! Tells when a processor of the emulated host stands still, which QEMU's emulation of nested guests
//! brings about now and then.
//!
//! Seen: a guest under the emulated KVM, whose one processor reads the kernel's clock in its timer
//! interrupt (`ktime_get_update_offsets_now`), and waits with interrupts off for the end of an update
//! of that clock (an odd `tk_core.seq`). The update is what the interrupt has interrupted, although it
//! runs with interrupts off: a processor that delivers one there is broken. It never goes on.

/// How far apart two looks may find a processor that stands still: it goes round in a loop of a few
/// instructions.
const LOOP_BYTES: u64 = 64;
/// So many looks in a row make sure.
const LOOKS: u32 = 5;

/// What a processor does at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Processor {
    /// Address of its next instruction.
    pub rip: u64,
    /// Whether it takes interrupts.
    pub interrupts: bool,
    /// Whether it waits for one.
    pub halted: bool,
}

/// Reads the answer of QEMU's `info registers -a`.
pub(crate) fn parse(text: &str) -> Vec<Processor> {
    text.lines().filter_map(line).collect()
}

/// `RIP=ffffffff8119fa0b RFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0`
fn line(line: &str) -> Option<Processor> {
    let field = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name));
    let hexadecimal = |name| u64::from_str_radix(field(name)?, 16).ok();
    const INTERRUPT_FLAG: u64 = 1 << 9;
    Some(Processor {
        rip: hexadecimal("RIP=")?,
        interrupts: hexadecimal("RFL=")? & INTERRUPT_FLAG != 0,
        halted: field("HLT=")? == "1",
    })
}

/// Looks at processors again and again.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Where each was at the first of its looks in a row, and how many there were.
    seen: Vec<(u64, u32)>,
}

impl Watch {
    /// Takes a look; returns the number and the address of a processor that stands still with
    /// interrupts off.
    pub(crate) fn look(&mut self, processors: &[Processor]) -> Option<(usize, u64)> {
        self.seen.resize(processors.len(), (0, 0));
        for (seen, processor) in self.seen.iter_mut().zip(processors) {
            let spins = !processor.interrupts && !processor.halted;
            *seen = match (spins, processor.rip.abs_diff(seen.0) < LOOP_BYTES) {
                (true, true) => (seen.0, seen.1 + 1),
                (true, false) => (processor.rip, 1),
                (false, _) => (0, 0),
            };
        }
        self.seen.iter().enumerate().find(|(_, (_, looks))| *looks >= LOOKS).map(|(number, (rip, _))| (number, *rip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "\r\nCPU#0\r\nRAX=0000000000000000 RBX=0000000000000001\r\n\
        RIP=ffffffff98712a3f RFL=00000216 [----AP-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n\
        CR0=80050033 CR2=00007f58 CR3=00000001031dc000 CR4=00350ef0\r\n\r\nCPU#1\r\n\
        RIP=ffffffff8119fa0b RFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0\r\n";

    #[test]
    fn the_answer_of_qemu_is_read() {
        let halted = Processor { rip: 0xffff_ffff_9871_2a3f, interrupts: true, halted: true };
        let spinning = Processor { rip: 0xffff_ffff_8119_fa0b, interrupts: false, halted: false };
        assert_eq!(parse(ANSWER), [halted, spinning]);
        assert_eq!(parse("CPU#0\r\nRIP=nothing RFL=2 HLT=0\r\n"), []);
    }

    #[test]
    fn only_a_processor_that_spins_with_interrupts_off_stands_still() {
        let mut watch = Watch::default();
        let all = parse(ANSWER);
        let moved: Vec<Processor> = all.iter().map(|one| Processor { rip: one.rip + 8, ..*one }).collect();
        for _ in 0..2 {
            assert_eq!((watch.look(&all), watch.look(&moved)), (None, None));
        }
        assert_eq!(watch.look(&all), Some((1, 0xffff_ffff_8119_fa0b)));
        for change in [
            |one: &Processor| Processor { rip: one.rip + 4096, ..*one },
            |one: &Processor| Processor { interrupts: true, ..*one },
            |one: &Processor| Processor { halted: true, ..*one },
        ] {
            let other: Vec<Processor> = all.iter().map(change).collect();
            assert_eq!(watch.look(&other), None);
            assert_eq!(watch.look(&all), None);
        }
    }
}
