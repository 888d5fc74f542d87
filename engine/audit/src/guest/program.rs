//! A program for the guest that reads and writes I/O ports: what no interpreter can do. Assembled
//! with this crate, put behind the header of an executable, and written into the guest.

use std::arch::global_asm;

// Reads an order of eight bytes from standard input: u16 what, u16 port or key, u32 count or value.
//   what 0: reads all ports, one byte each, and writes the 65536 bytes to standard output;
//   what 1: selects a key of fw_cfg and writes `count` bytes of its value;
//   what 2: writes the low byte of `value` to the port.
// Ends with code 1 when iopl(2) is refused. System calls and registers as in syscall(2).
global_asm!(
    ".pushsection .rodata.mayfly_audit_ports, \"a\"",
    ".balign 16",
    "mayfly_audit_ports_begin:",
    "sub rsp, 0x11000",
    // read(0, rsp, 8)
    "xor eax, eax",
    "xor edi, edi",
    "mov rsi, rsp",
    "mov edx, 8",
    "syscall",
    // iopl(3)
    "mov eax, 172",
    "mov edi, 3",
    "syscall",
    "test eax, eax",
    "mov edi, 1",
    "jnz 9f",
    "movzx ecx, word ptr [rsp]",
    "lea rsi, [rsp + 16]",
    "test ecx, ecx",
    "jz 2f",
    "dec ecx",
    "jz 3f",
    // what 2
    "movzx edx, word ptr [rsp + 2]",
    "mov eax, dword ptr [rsp + 4]",
    "out dx, al",
    "xor edi, edi",
    "jmp 9f",
    // what 0
    "2:",
    "xor edx, edx",
    "4:",
    "in al, dx",
    "mov byte ptr [rsi + rdx], al",
    "inc edx",
    "cmp edx, 0x10000",
    "jne 4b",
    "jmp 6f",
    // what 1
    "3:",
    "mov ax, word ptr [rsp + 2]",
    "mov edx, 0x510",
    "out dx, ax",
    "mov r8d, dword ptr [rsp + 4]",
    "and r8d, 0xffff",
    "xor ecx, ecx",
    "mov edx, 0x511",
    "5:",
    "cmp ecx, r8d",
    "je 7f",
    "in al, dx",
    "mov byte ptr [rsi + rcx], al",
    "inc ecx",
    "jmp 5b",
    "7:",
    "mov edx, r8d",
    // write(1, rsi, rdx)
    "6:",
    "mov eax, 1",
    "mov edi, 1",
    "syscall",
    "xor edi, edi",
    // exit_group(rdi)
    "9:",
    "mov eax, 231",
    "syscall",
    "mayfly_audit_ports_end:",
    ".popsection",
);

unsafe extern "C" {
    #[link_name = "mayfly_audit_ports_begin"]
    static BEGIN: u8;
    #[link_name = "mayfly_audit_ports_end"]
    static END: u8;
}

/// Where the program is loaded.
const ADDRESS: u64 = 0x40_0000;
/// ELF header and one program header (elf(5)).
const HEADERS: usize = 64 + 56;

/// The program as an executable file.
pub(super) fn executable() -> Vec<u8> {
    // SAFETY: the two symbols are the ends of the assembled code above, which is constant and in
    // one section.
    let code = unsafe {
        let (begin, end) = (&raw const BEGIN, &raw const END);
        std::slice::from_raw_parts(begin, end.addr() - begin.addr())
    };
    let size = (HEADERS + code.len()) as u64;
    let mut file = Vec::with_capacity(HEADERS + code.len());
    // ELF, 64 bits, little-endian, version 1; executable, x86-64.
    file.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend(2_u16.to_le_bytes());
    file.extend(62_u16.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    // Entry, program headers, no section headers, no flags; sizes and counts of the headers.
    for field in [ADDRESS + HEADERS as u64, 64, 0] {
        file.extend(field.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for field in [64_u16, 56, 1, 64, 0, 0] {
        file.extend(field.to_le_bytes());
    }
    // One part to load, readable and executable: offset, addresses, sizes, alignment.
    file.extend(1_u32.to_le_bytes());
    file.extend(5_u32.to_le_bytes());
    for field in [0, ADDRESS, ADDRESS, size, size, 0x1000] {
        file.extend(field.to_le_bytes());
    }
    file.extend(code);
    file
}

/// What the program is told to do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    /// Read one byte of each port.
    ReadAll,
    /// Read so many bytes, at most 65535, of this key of fw_cfg.
    Configuration(u16, u32),
    /// Write a byte to a port.
    Write(u16, u8),
}

impl Order {
    pub fn bytes(self) -> Vec<u8> {
        let (what, port, value) = match self {
            Self::ReadAll => (0_u16, 0, 0),
            Self::Configuration(key, count) => (1, key, count),
            Self::Write(port, value) => (2, port, u32::from(value)),
        };
        [&what.to_le_bytes()[..], &port.to_le_bytes(), &value.to_le_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};

    use super::*;

    /// Without root, iopl(2) is refused: the program runs, and says so with its exit code.
    #[test]
    #[ignore = "needs root"]
    fn it_is_a_program_that_linux_runs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ports");
        std::fs::write(&path, executable()).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&path);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&Order::Configuration(0, 0).bytes()).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1));
    }
}
