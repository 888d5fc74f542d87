//! Calls that are denied with some arguments only.

use std::collections::BTreeMap;

use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::Kind;

/// What a VMM asks of prctl(2) once its machine is built: names and timers of its threads.
const PRCTL: &[i32] = &[libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_TIMERSLACK];

/// What a zygote's forks ask of it before they deny it to themselves, each with the one value of
/// the second argument that takes something away and gives nothing back.
const PRCTL_TO_BECOME_A_FORK: &[(i32, Option<i32>)] = &[
    (libc::PR_SET_PDEATHSIG, Some(libc::SIGKILL)),
    (libc::PR_SET_DUMPABLE, Some(0)),
    (libc::PR_SET_NO_NEW_PRIVS, Some(1)),
    (libc::PR_CAPBSET_DROP, None),
    (libc::PR_CAP_AMBIENT, Some(libc::PR_CAP_AMBIENT_CLEAR_ALL)),
    (libc::PR_SCHED_CORE, Some(libc::PR_SCHED_CORE_CREATE)),
];

/// Request of ioctl(2) that sets a status flag as fcntl(2) does with `O_ASYNC` (ioctl_list(2)).
const FIOASYNC: i32 = 0x5452;

/// Request of ioctl(2) on `/dev/kvm` for a machine (`<linux/kvm.h>`). A VMM has its machine, and one
/// more takes long to close.
pub(super) const KVM_CREATE_VM: i32 = 0xae01;

/// Status flags (open(2)) that QEMU does not set: they would change how a file that somebody else
/// has open too is read or written, and send signals.
pub(super) const STATUS_FLAGS: [i32; 4] =
    [libc::O_APPEND, libc::O_ASYNC, libc::O_DIRECT, libc::O_NOATIME];

/// Advice of madvise(2) to make a huge page, now or in time. The kernel fills the holes of a file
/// with zeros for it, before Linux 6.4 also where a userfaultfd waits for them (`collapse_file` in
/// mm/khugepaged.c).
pub(super) const HUGE_PAGES: [i32; 2] = [libc::MADV_COLLAPSE, libc::MADV_HUGEPAGE];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The rules of what is denied.
pub(super) fn denied(kind: Kind) -> Result<Rules, BackendError> {
    // Huge pages of the host's pool count towards no memory cgroup (kernel
    // `admin-guide/mm/hugetlbpage.rst`).
    let huge_file = bits(1, u64::from(libc::MFD_HUGETLB))?;
    let huge_mapping = bits(3, u64::from(libc::MAP_HUGETLB.cast_unsigned()))?;
    // The kernel takes the low half of an argument of each of these.
    let low = |argument, value| is(SeccompCmpOp::Eq, argument, SeccompCmpArgLen::Dword, value);
    let sets = |flag: i32| {
        SeccompRule::new(vec![low(1, libc::F_SETFL)?, bits(2, u64::from(flag.cast_unsigned()))?])
    };
    let advises = |advice| SeccompRule::new(vec![low(2, advice)?]);
    let requests = |request| SeccompRule::new(vec![low(1, request)?]);
    Ok(BTreeMap::from([
        (libc::SYS_prctl, prctl(kind)?),
        (libc::SYS_fcntl, STATUS_FLAGS.into_iter().map(sets).collect::<Result<_, _>>()?),
        (libc::SYS_madvise, HUGE_PAGES.into_iter().map(advises).collect::<Result<_, _>>()?),
        (libc::SYS_memfd_create, vec![SeccompRule::new(vec![huge_file])?]),
        (libc::SYS_mmap, vec![SeccompRule::new(vec![huge_mapping])?]),
        (
            libc::SYS_ioctl,
            [FIOASYNC, KVM_CREATE_VM].into_iter().map(requests).collect::<Result<_, _>>()?,
        ),
    ]))
}

/// All but the allowed options; else "killed when its owner dies" and "not dumpable" could be
/// undone. The kernel takes the option as an `int`, the second argument as a `long`.
fn prctl(kind: Kind) -> Result<Vec<SeccompRule>, BackendError> {
    let of_forks = if kind == Kind::Zygote { PRCTL_TO_BECOME_A_FORK } else { &[] };
    let allowed = PRCTL.iter().chain(of_forks.iter().map(|(option, _)| option));
    let others = allowed
        .map(|option| is(SeccompCmpOp::Ne, 0, SeccompCmpArgLen::Dword, *option))
        .collect::<Result<_, _>>()?;
    let mut rules = vec![SeccompRule::new(others)?];
    for (option, value) in of_forks {
        if let Some(value) = value {
            rules.push(SeccompRule::new(vec![
                is(SeccompCmpOp::Eq, 0, SeccompCmpArgLen::Dword, *option)?,
                is(SeccompCmpOp::Ne, 1, SeccompCmpArgLen::Qword, *value)?,
            ])?);
        }
    }
    Ok(rules)
}

fn is(
    operator: SeccompCmpOp,
    argument: u8,
    length: SeccompCmpArgLen,
    value: i32,
) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, length, operator, u64::from(value.cast_unsigned()))
}

/// That all of these bits are set in an argument.
fn bits(argument: u8, bits: u64) -> Result<SeccompCondition, BackendError> {
    let operator = SeccompCmpOp::MaskedEq(bits);
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, bits)
}

#[cfg(test)]
mod tests {
    use mayfly_vmm_contract::hardening::UnlistedCalls;

    use super::super::tests::{answers, filtered};
    use super::super::{for_vmm, for_zygote};

    #[test]
    fn a_vmm_keeps_what_ties_it_to_its_owner_and_takes_no_huge_pages() {
        let outcome = filtered(&for_vmm(UnlistedCalls::Allow).unwrap(), || {
            let prctl = |option: i32, value: i64, errno| {
                answers(libc::SYS_prctl, [i64::from(option), value], errno)
            };
            // SAFETY: a name of less than 16 bytes that outlives the call.
            let named = unsafe { libc::prctl(libc::PR_SET_NAME, c"worker".as_ptr()) } == 0;
            let denied = [
                (libc::PR_SET_PDEATHSIG, 0),
                (libc::PR_SET_DUMPABLE, 1),
                (libc::PR_SCHED_CORE, i64::from(libc::PR_SCHED_CORE_CREATE)),
                (libc::PR_SET_MEMORY_MERGE, 1),
            ];
            let all = denied.iter().all(|(option, value)| prctl(*option, *value, libc::EPERM));
            // The kernel looks at the lower half of the option only.
            let high = answers(libc::SYS_prctl, [1 << 32 | 1, 0], libc::EPERM);
            let name = c"huge".as_ptr() as i64;
            let huge = answers(
                libc::SYS_memfd_create,
                [name, i64::from(libc::MFD_HUGETLB | libc::MFD_CLOEXEC)],
                libc::EPERM,
            );
            // SAFETY: an anonymous mapping that nobody uses.
            let mapped = unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                let map = |more| {
                    libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_NONE, flags | more, -1, 0)
                };
                map(libc::MAP_HUGETLB) == libc::MAP_FAILED
                    && crate::die::errno() == libc::EPERM
                    && map(0) != libc::MAP_FAILED
            };
            i32::from(!(named && all && high && huge && mapped))
        });
        assert_eq!(outcome, 0);
    }

    #[test]
    fn a_zygote_may_give_up_what_its_forks_give_up_and_take_nothing_back() {
        let outcome = filtered(&for_zygote(UnlistedCalls::Allow).unwrap(), || {
            let prctl = |option: i32, value: i32| {
                // SAFETY: prctl takes numbers.
                unsafe { libc::prctl(option, value, 0, 0, 0) }
            };
            let given_up = prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0
                && prctl(libc::PR_SET_DUMPABLE, 0) == 0
                && prctl(libc::PR_SET_NO_NEW_PRIVS, 1) == 0;
            let denied = |option, value| {
                answers(libc::SYS_prctl, [i64::from(option), i64::from(value)], libc::EPERM)
            };
            let kept = denied(libc::PR_SET_PDEATHSIG, 0)
                && denied(libc::PR_SET_DUMPABLE, 1)
                && denied(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE)
                && denied(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_SHARE_FROM);
            i32::from(!(given_up && kept))
        });
        assert_eq!(outcome, 0);
    }
}
