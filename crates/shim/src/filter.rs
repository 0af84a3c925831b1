//! The system call filter as a program for the kernel: compiled from `seccomp`'s data, kept for the next start, put on.
//!
//! Compiling takes libseccomp about 12 ms, more than everything else in a start together; so the program lies in the
//! driver's run folder, named by what it was made from, and only the first start of a boot compiles. It is put on by
//! our own entry, for the main process and for execs alike: libcontainer 0.7 gives execs no filter at all, and takes
//! the two values of a masked comparison the other way round than the OCI specification, which lets every clone pass.

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall, ScmpVersion};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Seek};
use std::path::Path;

use crate::seccomp::{ABSENT, NEWEST_KNOWN, When, allowed};
use crate::sys;

/// struct sock_filter: code u16, jt u8, jf u8, k u32.
const INSTRUCTION_BYTES: usize = 8;
/// The kernel takes no longer programs (BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;

/// A program that the kernel can take.
#[derive(Debug, Clone)]
pub struct Filter {
    program: Vec<libc::sock_filter>,
}

impl Filter {
    /// The one in `folder`, or a new one that is left there.
    pub fn kept_in(folder: &Path) -> io::Result<Self> {
        let path = folder.join(format!("seccomp-{:016x}.bpf", fingerprint()));
        let kept = fs::read(&path).ok();
        if let Some(filter) = kept.as_deref().and_then(checked).and_then(Self::parse) {
            return Ok(filter);
        }
        let mut bytes = compile()?;
        let filter = Self::parse(&bytes).ok_or_else(|| io::Error::other("the compiled filter is not a program"))?;
        bytes.extend_from_slice(&sum(&bytes).to_le_bytes());
        let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
        fs::write(&temporary, &bytes)?;
        fs::rename(temporary, path)?;
        Ok(filter)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (chunks, rest) = bytes.as_chunks::<INSTRUCTION_BYTES>();
        if chunks.is_empty() || chunks.len() > MAX_INSTRUCTIONS || !rest.is_empty() {
            return None;
        }
        let instruction = |c: &[u8; INSTRUCTION_BYTES]| libc::sock_filter {
            code: u16::from_ne_bytes([c[0], c[1]]),
            jt: c[2],
            jf: c[3],
            k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
        };
        Some(Self { program: chunks.iter().map(instruction).collect() })
    }

    /// Puts it on this process, for good, and gives up the privilege that this takes. The small ones go on last: of
    /// two filters that refuse a call, the newer one's answer counts. After an error, the process must end.
    pub fn put_on(&self) -> io::Result<()> {
        sys::filter_calls(&self.program)?;
        sys::filter_calls(&loop_commands())?;
        sys::filter_calls(&newer_calls())?;
        sys::give_up_admin()
    }
}

// Where things lie in struct seccomp_data { int nr; u32 arch; u64 ip; u64 args[6]; }.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const SECOND_ARGUMENT_AT: u32 = 24;
/// In the numbers of x32's calls.
const X32_BIT: u32 = 0x4000_0000;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// The architectures whose calls pass the main filter (AUDIT_ARCH_*), with their number of ioctl.
const IOCTL: &[(u32, u32)] = if cfg!(target_arch = "aarch64") {
    &[(0xC000_00B7, 29), (0x4000_0028, 54)]
} else {
    &[(0xC000_003E, 16), (0xC000_003E, X32_BIT | 514), (0x4000_0003, 54)]
};

/// A loop device's own commands are refused (EPERM). Whoever may write to the device may also detach it, as the kernel
/// sees it; then its number would be given to another Machine's volume, with this Machine still allowed to open it.
/// Not left to libseccomp: it compares all 64 bits of an argument of which the kernel reads 32.
fn loop_commands() -> Vec<libc::sock_filter> {
    // LOOP_SET_FD to LOOP_CONFIGURE are 0x4C00 to 0x4C0A.
    const COMMANDS: u32 = 0x4C00;
    const COMMANDS_MASK: u32 = 0xFFFF_FFF0;
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let mut program = Vec::new();
    for (index, (architecture, number)) in IOCTL.iter().enumerate() {
        // Over the blocks that follow, of four steps each, and the way out behind them.
        let to_check = (IOCTL.len() - index - 1) as u8 * 4 + 1;
        program.push(step(LOAD, ARCHITECTURE_AT, 0, 0));
        program.push(step(EQUAL, *architecture, 0, 2));
        program.push(step(LOAD, NUMBER_AT, 0, 0));
        program.push(step(EQUAL, *number, to_check, 0));
    }
    program.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0));
    // The low half, in which the kernel looks; both architectures are little-endian.
    program.push(step(LOAD, SECOND_ARGUMENT_AT, 0, 0));
    program.push(step(AND, COMMANDS_MASK, 0, 0));
    program.push(step(EQUAL, COMMANDS, 0, 1));
    program.push(step(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0, 0));
    program.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0));
    program
}

/// Calls newer than the profile are answered ENOSYS.
fn newer_calls() -> [libc::sock_filter; 5] {
    // Numbers with the x32 bit belong to the main filter; the numbers of new calls are the same for x86-64, i386 and
    // arm64, so the architecture does not matter.
    [
        libc::sock_filter { code: LOAD, jt: 0, jf: 0, k: NUMBER_AT },
        libc::sock_filter { code: AT_LEAST, jt: 2, jf: 0, k: X32_BIT },
        libc::sock_filter { code: GREATER, jt: 0, jf: 1, k: NEWEST_KNOWN },
        libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32 },
        libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ]
}

/// What the program depends on.
fn fingerprint() -> u64 {
    let mut hasher = DefaultHasher::new();
    (allowed(), ABSENT, NEWEST_KNOWN, architectures().len(), env!("CARGO_PKG_VERSION")).hash(&mut hasher);
    if let Ok(version) = ScmpVersion::current() {
        (version.major, version.minor, version.micro).hash(&mut hasher);
    }
    hasher.finish()
}

/// A kept program without its sum. The sum guards against a file that a crash cut short: half a filter could allow
/// what a whole one refuses.
fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let (body, tail) = bytes.split_last_chunk::<8>()?;
    (u64::from_le_bytes(*tail) == sum(body)).then_some(body)
}

fn sum(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

fn architectures() -> &'static [ScmpArch] {
    if cfg!(target_arch = "aarch64") {
        &[ScmpArch::Aarch64, ScmpArch::Arm]
    } else {
        &[ScmpArch::X8664, ScmpArch::X86, ScmpArch::X32]
    }
}

fn compile() -> io::Result<Vec<u8>> {
    let failed = |e: libseccomp::error::SeccompError| io::Error::other(format!("libseccomp: {e}"));
    let mut context = ScmpFilterContext::new(ScmpAction::Errno(libc::EPERM)).map_err(failed)?;
    for architecture in architectures() {
        context.add_arch(*architecture).map_err(failed)?;
    }
    // A name that this libseccomp does not know is a call newer than NEWEST_KNOWN, or of another architecture.
    for (name, when) in allowed() {
        let Ok(call) = ScmpSyscall::from_name(name) else { continue };
        match comparison(when) {
            None => context.add_rule(ScmpAction::Allow, call).map_err(failed)?,
            Some(comparison) => context.add_rule_conditional(ScmpAction::Allow, call, &[comparison]).map_err(failed)?,
        };
    }
    for name in ABSENT {
        let call = ScmpSyscall::from_name(name).map_err(failed)?;
        context.add_rule(ScmpAction::Errno(libc::ENOSYS), call).map_err(failed)?;
    }
    let memory = nix::sys::memfd::memfd_create(c"seccomp", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    context.export_bpf(&memory).map_err(failed)?;
    let mut bytes = Vec::new();
    let mut file = File::from(memory);
    file.rewind()?;
    file.take((MAX_INSTRUCTIONS * INSTRUCTION_BYTES) as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn comparison(when: When) -> Option<ScmpArgCompare> {
    let (how, with) = match when {
        When::Always => return None,
        When::Less(value) => (ScmpCompareOp::Less, value),
        When::Equal(value) => (ScmpCompareOp::Equal, value),
        When::Greater(value) => (ScmpCompareOp::Greater, value),
        When::Without(bits) => (ScmpCompareOp::MaskedEqual(bits), 0),
    };
    Some(ScmpArgCompare::new(0, how, with))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_filter_is_the_compiled_one_and_a_torn_one_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let compiled = Filter::kept_in(folder.path()).unwrap().program;
        let file = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let whole = fs::read(&file).unwrap();
        let same = |program: Vec<libc::sock_filter>| {
            program.len() == compiled.len()
                && program.iter().zip(&compiled).all(|(a, b)| a.k == b.k && a.code == b.code)
        };
        assert!(same(Filter::kept_in(folder.path()).unwrap().program));
        fs::write(&file, &whole[..whole.len() / 2 / 8 * 8]).unwrap();
        assert!(same(Filter::kept_in(folder.path()).unwrap().program));
        assert_eq!(fs::read(&file).unwrap(), whole);
    }
}
