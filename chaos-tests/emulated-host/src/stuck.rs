//! Tells when a processor of the emulated host stands still, which QEMU's emulation of nested
//! guests brings about now and then.
//!
//! Seen: a guest under the emulated KVM, whose one processor reads the kernel's clock in its timer
//! interrupt (`ktime_get_update_offsets_now`), and waits with interrupts off for the end of an
//! update of that clock (an odd `tk_core.seq`). The update is what the interrupt has interrupted,
//! although it runs with interrupts off: a processor that delivers one there is broken. It never
//! goes on.

/// How far apart two looks may find a processor that stands still: it goes round in a loop of a few
/// instructions, and none of its other registers changes.
const LOOP_BYTES: u64 = 64;
/// So many looks in a row make sure.
pub(crate) const LOOKS: u32 = 5;

/// What a processor does at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Processor {
    /// General registers, as QEMU prints them.
    pub general: String,
    /// Address of its next instruction.
    pub rip: u64,
    /// Whether it takes interrupts.
    pub interrupts: bool,
    /// Whether it waits for one.
    pub halted: bool,
}

/// Reads the answer of QEMU's `info registers -a`.
pub(crate) fn parse(text: &str) -> Vec<Processor> {
    let (mut all, mut general) = (Vec::new(), String::new());
    for text in text.lines() {
        match line(text) {
            Some(processor) => {
                all.push(Processor { general: std::mem::take(&mut general), ..processor });
            }
            None if text.starts_with("CPU#") => general.clear(),
            None if text.starts_with('R') => general.push_str(text.trim_end()),
            None => {}
        }
    }
    all
}

/// `RIP=ffffffff8119fa0b RFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0`
fn line(line: &str) -> Option<Processor> {
    const INTERRUPT_FLAG: u64 = 1 << 9;
    let field = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name));
    let hexadecimal = |name| u64::from_str_radix(field(name)?, 16).ok();
    Some(Processor {
        general: String::new(),
        rip: hexadecimal("RIP=")?,
        interrupts: hexadecimal("RFL=")? & INTERRUPT_FLAG != 0,
        halted: field("HLT=")? == "1",
    })
}

/// Looks at processors again and again.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// What each was like at the first of its looks in a row, and how many there were.
    seen: Vec<(Option<Processor>, u32)>,
}

impl Watch {
    /// Takes a look; returns the number and the address of a processor that stands still with
    /// interrupts off.
    pub(crate) fn look(&mut self, processors: &[Processor]) -> Option<(usize, u64)> {
        self.seen.resize(processors.len(), (None, 0));
        for ((first, looks), processor) in self.seen.iter_mut().zip(processors) {
            let spins = !processor.interrupts && !processor.halted;
            let same = |first: &Processor| {
                first.rip.abs_diff(processor.rip) < LOOP_BYTES && first.general == processor.general
            };
            match first {
                Some(first) if spins && same(first) => *looks += 1,
                _ => (*first, *looks) = (spins.then(|| processor.clone()), u32::from(spins)),
            }
        }
        let stuck = self.seen.iter().enumerate().find(|(_, (_, looks))| *looks >= LOOKS);
        stuck.and_then(|(number, (first, _))| Some((number, first.as_ref()?.rip)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "\r\nCPU#0\r\nRAX=0000000000000000 RBX=0000000000000001\r\n\
        RIP=ffffffff98712a3f RFL=00000216 [----AP-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n\
        CR0=80050033 CR2=00007f58 CR3=00000001031dc000 CR4=00350ef0\r\n\r\nCPU#1\r\n\
        RAX=ffff88803e625e4c RBX=000000000000d9e1\r\nR8 =0000000000000000 R9 =0000000000000001\r\n\
        RIP=ffffffff8119fa0b RFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0\r\n";

    #[test]
    fn the_answer_of_qemu_is_read() {
        let general = "RAX=0000000000000000 RBX=0000000000000001".to_owned();
        let halted =
            Processor { general, rip: 0xffff_ffff_9871_2a3f, interrupts: true, halted: true };
        let general =
            "RAX=ffff88803e625e4c RBX=000000000000d9e1R8 =0000000000000000 R9 =0000000000000001"
                .to_owned();
        let spinning =
            Processor { general, rip: 0xffff_ffff_8119_fa0b, interrupts: false, halted: false };
        assert_eq!(parse(ANSWER), [halted, spinning]);
        assert_eq!(parse("CPU#0\r\nRIP=nothing RFL=2 HLT=0\r\n"), []);
    }

    #[test]
    fn only_a_processor_that_spins_with_interrupts_off_stands_still() {
        let mut watch = Watch::default();
        let all = parse(ANSWER);
        let moved: Vec<Processor> =
            all.iter().map(|one| Processor { rip: one.rip + 8, ..one.clone() }).collect();
        for _ in 0..2 {
            assert_eq!((watch.look(&all), watch.look(&moved)), (None, None));
        }
        assert_eq!(watch.look(&all), Some((1, 0xffff_ffff_8119_fa0b)));
        for change in [
            |one: &Processor| Processor { rip: one.rip + 4096, ..one.clone() },
            |one: &Processor| Processor { general: "RAX=1".to_owned(), ..one.clone() },
            |one: &Processor| Processor { interrupts: true, ..one.clone() },
            |one: &Processor| Processor { halted: true, ..one.clone() },
        ] {
            let other: Vec<Processor> = all.iter().map(change).collect();
            assert_eq!(watch.look(&other), None);
            assert_eq!(watch.look(&all), None);
        }
    }
}
